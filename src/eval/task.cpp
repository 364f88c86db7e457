#include "eval/task.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/nearest.h"
#include "data/python_text.h"

namespace cmoe {
namespace {

// The common form: one context, a choice behind a space each.
TaskDocument choices_document(const JsonRow& row, std::string context, const std::vector<std::string>& choices, int64_t gold) {
  CMOE_CHECK(gold >= 0 && gold < static_cast<int64_t>(choices.size()),
             "{} names choice {} as the right one; expected one of its {} choices, counted from 0", row.where, gold,
             choices.size());
  TaskDocument document{.gold = gold};
  document.contexts.push_back(std::move(context));
  for (const std::string& choice : choices) {
    document.continuations.push_back(" " + choice);
    document.lengths.push_back(python_length(choice));
  }
  return document;
}

TaskDocument piqa(const JsonRow& row) {
  return choices_document(row, "Question: " + row.text("goal") + "\nAnswer:", {row.text("sol1"), row.text("sol2")},
                          row.number("label"));
}

// ARC and OpenBookQA name their choices ("A" to "E", or "1" to "4"); the answer is such a name. The official files nest what
// the Hugging Face rows have flat: {"stem", "choices": [{"text", "label"}]} under "question".
struct LabelledChoices {
  std::string stem;
  std::vector<std::string> choices;
  int64_t gold = -1;
};
LabelledChoices labelled_choices(const JsonRow& row, const std::string& stem_key) {
  LabelledChoices read;
  std::vector<std::string> labels;
  const auto question = row.value.find("question");
  if (question != row.value.end() && question->is_object()) {
    const JsonRow nested{.value = *question, .where = row.where};
    read.stem = nested.text("stem");
    const auto list = nested.value.find("choices");
    CMOE_CHECK(list != nested.value.end() && list->is_array(), "{} has no list \"choices\" in its \"question\"", row.where);
    for (const auto& item : *list) {
      const JsonRow choice{.value = item, .where = row.where};
      read.choices.push_back(choice.text("text"));
      labels.push_back(choice.text("label"));
    }
  } else {
    read.stem = row.text(stem_key);
    CMOE_CHECK(row.has("choices") && row.value["choices"].is_object(),
               "{} has no object \"choices\"; expected {{\"text\": [...], \"label\": [...]}}", row.where);
    const JsonRow choices{.value = row.value["choices"], .where = row.where};
    read.choices = choices.texts("text");
    labels = choices.texts("label");
  }
  const std::string answer(python_lstrip(row.text("answerKey")));
  const auto found = std::find(labels.begin(), labels.end(), answer);
  CMOE_CHECK(found != labels.end(), "{} has answerKey \"{}\", which is the label of none of its {} choices", row.where, answer,
             labels.size());
  read.gold = found - labels.begin();
  return read;
}

TaskDocument arc(const JsonRow& row) {
  const LabelledChoices read = labelled_choices(row, "question");
  return choices_document(row, "Question: " + read.stem + "\nAnswer:", read.choices, read.gold);
}

TaskDocument openbookqa(const JsonRow& row) {
  const LabelledChoices read = labelled_choices(row, "question_stem");
  return choices_document(row, read.stem, read.choices, read.gold);
}

// Takes out what WikiHow's pages leave: " [title]" and everything in brackets. Source: hellaswag/utils.py.
std::string clean_hellaswag(std::string_view text) {
  const std::string titled = python_replace(python_strip(text), " [title]", ". ");
  std::string cleaned;
  for (size_t at = 0; at < titled.size();) {
    const size_t close = titled[at] == '[' ? titled.find_first_of("]\n", at) : std::string::npos;
    if (close != std::string::npos && titled[close] == ']') {
      at = close + 1;
    } else {
      cleaned += titled[at++];
    }
  }
  return python_replace(cleaned, "  ", " ");
}

TaskDocument hellaswag(const JsonRow& row) {
  // Some collections carry activity and context joined and cleaned, as "ctx".
  const std::string context =
      row.has("ctx_a") ? row.text("activity_label") + ": " + row.text("ctx_a") + " " + python_capitalize(row.text("ctx_b"))
                       : row.text("ctx");
  std::vector<std::string> endings = row.texts("endings");
  for (std::string& ending : endings) ending = clean_hellaswag(ending);
  return choices_document(row, clean_hellaswag(context), endings, row.number("label"));
}

// The choices stand in the contexts; what follows the blank is scored behind each.
TaskDocument winogrande(const JsonRow& row) {
  const std::string& sentence = row.text("sentence");
  const size_t blank = sentence.find('_');
  CMOE_CHECK(blank != std::string::npos, "{} has no '_' in its sentence", row.where);
  const int64_t gold = row.number("answer") - 1;
  CMOE_CHECK(gold == 0 || gold == 1, "{} has answer {}; expected 1 or 2", row.where, gold + 1);
  TaskDocument document{.gold = gold};
  for (const char* option : {"option1", "option2"}) {
    document.contexts.push_back(sentence.substr(0, blank) + row.text(option));
    document.lengths.push_back(python_length(document.contexts.back()));
  }
  document.continuations = {" " + std::string(python_strip(std::string_view(sentence).substr(blank + 1)))};
  return document;
}

TaskDocument boolq(const JsonRow& row) {
  return choices_document(row, row.text("passage") + "\nQuestion: " + row.text("question") + "?\nAnswer:", {"no", "yes"},
                          row.number(row.has("label") ? "label" : "answer"));
}

TaskDocument sciq(const JsonRow& row) {
  const std::string support(python_lstrip(row.text("support")));
  return choices_document(
      row, support + "\nQuestion: " + row.text("question") + "\nAnswer:",
      {row.text("distractor1"), row.text("distractor2"), row.text("distractor3"), row.text("correct_answer")}, 3);
}

TaskDocument mmlu(const JsonRow& row) {
  const std::vector<std::string> choices = row.texts("choices");
  CMOE_CHECK(choices.size() == 4, "{} has {} choices; expected 4", row.where, choices.size());
  const std::string question(python_strip(row.text("question")));
  TaskDocument document = choices_document(
      row, question + "\nA. " + choices[0] + "\nB. " + choices[1] + "\nC. " + choices[2] + "\nD. " + choices[3] + "\nAnswer:",
      {"A", "B", "C", "D"}, row.number("answer"));
  document.subject = row.text("subject");
  return document;
}

TaskDocument lambada(const JsonRow& row) {
  const std::string& text = row.text("text");
  const size_t space = text.rfind(' ');
  CMOE_CHECK(space != std::string::npos, "{} has a text of one word; expected a last word to predict", row.where);
  return {.contexts = {text.substr(0, space)}, .continuations = {text.substr(space)}};
}

TaskDocument plain_choices(const JsonRow& row) {
  return choices_document(row, row.text("query"), row.texts("choices"), row.number("gold"));
}

TaskDocument wikitext(const JsonRow& row) { return wikitext_document(row.text("page")); }

using Kind = TaskKind;
using Shots = ShotRule;
const TaskDefinition kTasks[] = {
    {"arc_challenge", Kind::multiple_choice, true, {"test", "validation"}, "train", Shots::random, &arc},
    {"arc_easy", Kind::multiple_choice, true, {"test", "validation"}, "train", Shots::random, &arc},
    {"boolq", Kind::multiple_choice, false, {"validation", "val", "dev"}, "train", Shots::random_others, &boolq},
    {"hellaswag", Kind::multiple_choice, true, {"validation", "val"}, "train", Shots::random_others, &hellaswag},
    {"lambada_openai", Kind::last_word, false, {"test"}, "", Shots::none, &lambada},
    {"mmlu", Kind::multiple_choice, false, {"test", "validation"}, "dev", Shots::first, &mmlu},
    {"multiple_choice", Kind::multiple_choice, true, {"test", "validation"}, "train", Shots::random_others, &plain_choices},
    {"openbookqa", Kind::multiple_choice, true, {"test", "validation"}, "train", Shots::random, &openbookqa},
    {"piqa", Kind::multiple_choice, true, {"validation", "valid"}, "train", Shots::random_others, &piqa},
    {"sciq", Kind::multiple_choice, true, {"test", "validation"}, "train", Shots::random, &sciq},
    {"wikitext", Kind::rolling, false, {"test", "validation"}, "", Shots::none, &wikitext},
    {"winogrande", Kind::multiple_choice, false, {"validation", "val"}, "train", Shots::random_others, &winogrande},
};

struct SubjectGroup {
  std::string_view group, subjects;  // names between commas
};
constexpr SubjectGroup kMmluGroups[] = {
    {"mmlu_stem",
     ",abstract_algebra,anatomy,astronomy,college_biology,college_chemistry,college_computer_science,college_mathematics,"
     "college_physics,computer_security,conceptual_physics,electrical_engineering,elementary_mathematics,high_school_biology,"
     "high_school_chemistry,high_school_computer_science,high_school_mathematics,high_school_physics,high_school_statistics,"
     "machine_learning,"},
    {"mmlu_humanities",
     ",formal_logic,high_school_european_history,high_school_us_history,high_school_world_history,international_law,"
     "jurisprudence,logical_fallacies,moral_disputes,moral_scenarios,philosophy,prehistory,professional_law,world_religions,"},
    {"mmlu_social_sciences",
     ",econometrics,high_school_geography,high_school_government_and_politics,high_school_macroeconomics,"
     "high_school_microeconomics,high_school_psychology,human_sexuality,professional_psychology,public_relations,"
     "security_studies,sociology,us_foreign_policy,"},
};

// re.sub(open \s* ([^close]*?) \s* close, open \1 close)
std::string strip_inside(const std::string& text, char open, char close) {
  std::string result;
  for (size_t at = 0;;) {
    const size_t begin = text.find(open, at);
    const size_t end = begin == std::string::npos ? begin : text.find(close, begin + 1);
    if (end == std::string::npos) return result + text.substr(at);
    result += text.substr(at, begin - at) + open;
    result += python_strip(std::string_view(text).substr(begin + 1, end - begin - 1));
    result += close;
    at = end + 1;
  }
}

}  // namespace

const TaskDefinition& find_task(std::string_view name) {
  std::vector<std::string> names;
  for (const TaskDefinition& task : kTasks) {
    if (task.name == name) return task;
    names.emplace_back(task.name);
  }
  const std::string near = nearest(name, names);
  fail("task '{}' is unknown{}; expected one of {}", name, near.empty() ? "" : fmt::format(" (did you mean {}?)", near),
       task_names());
}

std::string task_names() {
  std::string names;
  for (const TaskDefinition& task : kTasks) names += (names.empty() ? "" : ", ") + std::string(task.name);
  return names;
}

std::string mmlu_group(std::string_view subject) {
  for (const auto& [group, subjects] : kMmluGroups) {
    if (subjects.find("," + std::string(subject) + ",") != std::string_view::npos) return std::string(group);
  }
  return "mmlu_other";
}

std::vector<std::string> wikitext_pages(std::string_view raw) {
  std::vector<std::string> pages;
  std::string page;
  bool first_line = true;
  const auto finish = [&] {
    if (!python_strip(page).empty()) pages.push_back(page);
  };
  for (;;) {
    const size_t end = raw.find('\n');
    const std::string_view line = raw.substr(0, end);
    const std::string joined = python_replace(python_replace(line, "= = =", "==="), "= =", "==");
    const std::string_view heading = python_strip(joined);
    if (heading.starts_with("= ") && heading.ends_with(" =")) {
      finish();
      page.clear();
      first_line = true;
    }
    page += (first_line ? "" : "\n") + std::string(line);
    first_line = false;
    if (end == std::string_view::npos) break;
    raw.remove_prefix(end + 1);
  }
  finish();
  return pages;
}

std::string detokenize_wikitext(std::string page) {
  const auto replace = [&page](std::string_view from, std::string_view to) { page = python_replace(page, from, to); };
  replace("s '", "s'");
  // Their pattern "/' [0-9]/" holds its slashes, and its replacement is that text itself.
  for (char digit = '0'; digit <= '9'; ++digit) replace(std::string("/' ") + digit + "/", "/'[0-9]/");
  replace(" @-@ ", "-");
  replace(" @,@ ", ",");
  replace(" @.@ ", ".");
  for (const char* mark : {":", ";", ".", "!", "?", ","}) replace(std::string(" ") + mark + " ", std::string(mark) + " ");
  page = strip_inside(page, '(', ')');
  page = strip_inside(page, '[', ']');
  page = strip_inside(page, '{', '}');
  page = strip_inside(page, '"', '"');
  page = strip_inside(page, '\'', '\'');
  replace("= = = =", "====");
  replace("= = =", "===");
  replace("= =", "==");
  replace(" \u00b0 ", "\u00b0");
  replace(" \n", "\n");
  replace("\n ", "\n");
  replace(" N ", " 1 ");
  replace(" 's", "'s");
  return page;
}

TaskDocument wikitext_document(const std::string& page) {
  return {.contexts = {""},
          .continuations = {detokenize_wikitext(page)},
          .words = python_words(page),
          .bytes = static_cast<int64_t>(page.size())};
}

}  // namespace cmoe
