#include "eval/task_questions.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/parallel.h"
#include "data/chat_template.h"
#include "data/python_random.h"
#include "data/python_text.h"
#include "data/text.h"

namespace cmoe {
namespace {

constexpr uint64_t kShotSeed = 1234;

// The first of the names NAME.jsonl, NAME.jsonl.gz that exists; "" when none does.
std::string find_rows(const std::string& folder, const std::string& name) {
  for (const char* ending : {".jsonl", ".jsonl.gz"}) {
    const std::string path = (std::filesystem::path(folder) / (name + ending)).string();
    if (std::filesystem::exists(path)) return path;
  }
  return {};
}

std::string find_file(const TaskDefinition& task, const std::string& folder) {
  CMOE_CHECK(!folder.empty(), "task {}: no data; expected --task-data FOLDER or --tasks {}=FILE", task.name, task.name);
  std::string tried;
  for (const std::string_view split : task.splits) {
    const std::string name = fmt::format("{}.{}", task.name, split);
    std::string path = find_rows(folder, name);
    if (!path.empty()) return path;
    tried += name + ".jsonl, ";
  }
  std::string path = find_rows(folder, std::string(task.name));
  CMOE_CHECK(!path.empty(), "task {}: {} holds none of {}{}.jsonl (or .gz); give its rows as {}=FILE", task.name, folder, tried,
             task.name, task.name);
  return path;
}

// PIQA's official labels lie beside its rows: valid.jsonl and valid-labels.lst.
void add_piqa_labels(std::vector<JsonRow>& rows, const std::string& path) {
  if (rows[0].has("label")) return;
  const std::string labels_path = path.substr(0, path.rfind(".jsonl")) + "-labels.lst";
  CMOE_CHECK(std::filesystem::exists(labels_path), "{} has no \"label\", and there is no {}", rows[0].where, labels_path);
  const std::string labels = read_utf8_file(labels_path);
  size_t row = 0;
  for (const char byte : labels) {
    if (byte == '0' || byte == '1') {
      CMOE_CHECK(row < rows.size(), "{}: more labels than the {} rows of {}", labels_path, rows.size(), path);
      rows[row++].value["label"] = byte - '0';
    }
  }
  CMOE_CHECK(row == rows.size(), "{}: {} labels for the {} rows of {}", labels_path, row, rows.size(), path);
}

std::vector<JsonRow> read_rows(const TaskDefinition& task, const std::string& path) {
  std::vector<JsonRow> rows;
  if (task.kind == TaskKind::rolling && text_format_of(path) == TextFormat::wikitext) {
    for (const std::string& page : wikitext_pages(read_utf8_file(path)))
      rows.push_back({.value = {{"page", page}}, .where = fmt::format("{}: page {}", path, rows.size() + 1)});
    CMOE_CHECK(!rows.empty(), "{}: holds no page", path);
    return rows;
  }
  rows = read_json_rows(path);
  if (task.name == "piqa") add_piqa_labels(rows, path);
  return rows;
}

// Draws the shots of one document after the other; the state of the random numbers goes on between them.
class Shots {
 public:
  Shots(const TaskDefinition& task, const std::string& folder, int64_t count) : task_(task), count_(count) {
    if (count == 0) return;
    CMOE_CHECK(task.shots != ShotRule::none, "task {}: takes no worked examples; expected --fewshot 0", task.name);
    const std::string name = fmt::format("{}.{}", task.name, task.shot_split);
    const std::string path = find_rows(folder, name);
    CMOE_CHECK(!path.empty(), "task {}: its worked examples are read from {}.jsonl (or .gz), which {} does not hold", task.name,
               name, folder.empty() ? "no folder" : folder);
    pool_ = read_rows(task, path);
    for (const JsonRow& row : pool_) documents_.push_back(task.document(row));
    if (task.shots == ShotRule::first) {
      for (size_t i = 0; i < documents_.size(); ++i) of_subject_[documents_[i].subject].push_back(i);
      return;
    }
    const int64_t needed = count + (task.shots == ShotRule::random_others);
    CMOE_CHECK(static_cast<int64_t>(pool_.size()) >= needed, "{}: {} rows; expected at least {} for {} worked examples", path,
               pool_.size(), needed, count);
  }

  const std::vector<TaskDocument>& pool() const { return documents_; }

  /// Indices into pool().
  std::vector<size_t> draw(const JsonRow& row, const TaskDocument& document) {
    std::vector<size_t> drawn;
    if (count_ == 0) return drawn;
    if (task_.shots == ShotRule::first) {
      const std::vector<size_t>& mine = of_subject_[document.subject];
      CMOE_CHECK(static_cast<int64_t>(mine.size()) >= count_,
                 "task {}: {} worked examples for subject '{}'; expected at least {}", task_.name, mine.size(),
                 document.subject, count_);
      return {mine.begin(), mine.begin() + count_};
    }
    const bool others = task_.shots == ShotRule::random_others;
    const auto keep = [&](size_t index) { return !others || pool_[index].value != row.value; };
    for (const int64_t index : random_.sample(static_cast<int64_t>(pool_.size()), count_ + others)) {
      if (keep(static_cast<size_t>(index)) && static_cast<int64_t>(drawn.size()) < count_)
        drawn.push_back(static_cast<size_t>(index));
    }
    if (static_cast<int64_t>(drawn.size()) == count_) return drawn;
    // The question stands in the pool more than once.
    std::vector<size_t> pool;
    for (size_t i = 0; i < pool_.size(); ++i) {
      if (keep(i)) pool.push_back(i);
    }
    CMOE_CHECK(static_cast<int64_t>(pool.size()) >= count_, "task {}: {} other rows for {} worked examples", task_.name,
               pool.size(), count_);
    drawn.clear();
    for (const int64_t index : random_.sample(static_cast<int64_t>(pool.size()), count_))
      drawn.push_back(pool[static_cast<size_t>(index)]);
    return drawn;
  }

 private:
  const TaskDefinition& task_;
  int64_t count_;
  std::vector<JsonRow> pool_;
  std::vector<TaskDocument> documents_;
  std::map<std::string, std::vector<size_t>> of_subject_;
  PythonRandom random_{kShotSeed};
};

std::string description(const TaskDocument& document) {
  if (document.subject.empty()) return {};
  return fmt::format("The following are multiple choice questions (with answers) about {}.\n\n",
                     python_replace(document.subject, "_", " "));
}

std::string chat_context(const Tokenizer& tokenizer, const Task& task, size_t index, const std::string& question) {
  std::vector<ChatMessage> messages;
  const std::string system = description(task.documents[index]);
  if (!system.empty()) messages.push_back({"system", system});
  for (const size_t shot : task.shots_of[index]) {
    messages.push_back({"user", task.examples[shot].question()});
    messages.push_back({"assistant", task.examples[shot].answer()});
  }
  messages.push_back({"user", question});
  try {
    return apply_chat_template(tokenizer, messages, /*add_generation_prompt=*/true);
  } catch (const Error&) {
    if (system.empty()) throw;
    messages.erase(messages.begin());
    return apply_chat_template(tokenizer, messages, /*add_generation_prompt=*/true);
  }
}

int32_t prefix_token(const Tokenizer& tokenizer) {
  const std::optional<int32_t> id = tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
  CMOE_CHECK(id.has_value(), "the tokenizer has neither BOS nor EOS; expected one to stand before a text without context");
  return *id;
}

// With what the post-processor adds, unless the text brings its own BOS.
std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text) {
  const std::optional<int32_t> id = tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
  const bool has_own = id && !tokenizer.token_text(*id).empty() && text.starts_with(tokenizer.token_text(*id));
  return tokenizer.encode(text, {.add_special = !has_own});
}

}  // namespace

Task read_task(const TaskSource& source) {
  Task task{.definition = &find_task(source.task), .shots = source.shots};
  task.file = source.file.empty() ? find_file(*task.definition, source.folder) : source.file;
  const std::string folder = source.folder.empty() ? std::filesystem::path(task.file).parent_path().string() : source.folder;
  Shots shots(*task.definition, folder, source.shots);
  std::map<std::string, int64_t> counts;
  for (const JsonRow& row : read_rows(*task.definition, task.file)) {
    TaskDocument document = task.definition->document(row);
    if (source.limit > 0 && ++counts[document.subject] > source.limit) continue;
    task.shots_of.push_back(shots.draw(row, document));
    task.documents.push_back(std::move(document));
  }
  task.examples = shots.pool();
  return task;
}

ScoredText encode_request(const Tokenizer& tokenizer, const std::string& context, const std::string& continuation,
                          int64_t max_length, const std::string& where) {
  ScoredText text;
  if (context.empty()) {
    text.tokens = tokenizer.encode(continuation, {.add_special = false});
    const int32_t prefix = prefix_token(tokenizer);
    if (text.tokens.empty() || text.tokens[0] != prefix) text.tokens.insert(text.tokens.begin(), prefix);
    text.score_from = 1;
  } else {
    // Spaces move from one to the other, so the text of both is what it was.
    const std::string bare(python_rstrip(context));
    text.tokens = encode(tokenizer, context + continuation);
    text.score_from = static_cast<int64_t>(encode(tokenizer, bare).size());
  }
  const auto size = static_cast<int64_t>(text.tokens.size());
  CMOE_CHECK(text.score_from < size, "{}: a choice adds no token to its context", where);
  CMOE_CHECK(text.score_from >= 1, "{}: the context has no token to predict from", where);
  CMOE_CHECK(size - text.score_from <= max_length, "{}: a choice of {} tokens; expected at most the {} that the model reads",
             where, size - text.score_from, max_length);
  if (size > max_length + 1) {
    text.tokens.erase(text.tokens.begin(), text.tokens.end() - (max_length + 1));
    text.score_from -= size - (max_length + 1);
  }
  return text;
}

std::vector<ScoredText> rolling_windows(const Tokenizer& tokenizer, const std::string& text, int64_t max_length) {
  std::vector<int32_t> tokens = encode(tokenizer, text);
  tokens.insert(tokens.begin(), prefix_token(tokenizer));
  std::vector<ScoredText> windows;
  // Token i + 1 is predicted from token i and what the window holds before it.
  for (size_t predicted = 1; predicted < tokens.size();) {
    const size_t end = std::min(tokens.size(), predicted + static_cast<size_t>(max_length));
    // A last window that is not full is filled with context from the left.
    const size_t begin = end - std::min(end, static_cast<size_t>(max_length) + 1);
    windows.push_back({.tokens = {tokens.begin() + static_cast<int64_t>(begin), tokens.begin() + static_cast<int64_t>(end)},
                       .score_from = static_cast<int64_t>(predicted - begin)});
    predicted = end;
  }
  return windows;
}

TaskRequest task_request(const Task& task, size_t index, int64_t request, const Tokenizer* chat) {
  const TaskDocument& document = task.documents[index];
  TaskRequest made{.context = {}, .continuation = document.continuation(request)};
  if (chat != nullptr) {
    made.context = chat_context(*chat, task, index, document.context(request));
    if (task.definition->kind == TaskKind::multiple_choice) made.continuation.erase(0, 1);
    return made;
  }
  made.context = description(document);
  for (const size_t shot : task.shots_of[index])
    made.context += task.examples[shot].question() + " " + task.examples[shot].answer() + "\n\n";
  made.context += document.context(request);
  return made;
}

std::vector<std::vector<ScoredText>> encode_task(const Task& task, const Tokenizer& tokenizer, int64_t max_length, bool chat) {
  CMOE_CHECK(!chat || !tokenizer.chat_template().empty(), "task {}: the model has no chat template; leave out --chat",
             task.definition->name);
  std::vector<std::vector<ScoredText>> questions(task.documents.size());
  parallel_for(static_cast<int64_t>(questions.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      const TaskDocument& document = task.documents[i];
      if (task.definition->kind == TaskKind::rolling) {
        questions[i] = rolling_windows(tokenizer, document.continuation(0), max_length);
        continue;
      }
      const std::string where = fmt::format("{}: document {}", task.file, i);
      for (int64_t request = 0; request < document.requests(); ++request) {
        const TaskRequest asked = task_request(task, i, request, chat ? &tokenizer : nullptr);
        questions[i].push_back(encode_request(tokenizer, asked.context, asked.continuation, max_length, where));
      }
    }
  });
  return questions;
}

}  // namespace cmoe
