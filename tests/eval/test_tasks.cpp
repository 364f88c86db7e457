#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "data/load_tokenizer.h"
#include "data/python_text.h"
#include "eval/task_metrics.h"
#include "support/refusal.h"
#include "support/temporary_directory.h"
#include "support/tiny_model.h"
#include "support/world.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

const std::string kTasks = std::string(CMOE_SOURCE_DIR) + "/tests/eval/fixtures/tasks";

// What lm-evaluation-harness asks, scores and reports for the same rows and model (make_task_golden.py).
TEST(Tasks, EqualTheHarness) {
  Communicator& world = test_world();
  const nlohmann::json golden = nlohmann::json::parse(read_text(kTasks + "/golden.json"));
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  const Transformer model(checkpoint, make_cpu_backend(), DType::f32);
  const Tokenizer tokenizer = load_tokenizer(fixture("tiny-llama"));
  ASSERT_EQ(golden.size(), 10u);
  for (const auto& [name, by_shots] : golden.items()) {
    for (const auto& [shots, expected] : by_shots.items()) {
      const ::testing::ScopedTrace trace(__FILE__, __LINE__, name + " with " + shots + " shots");
      const bool chat = shots.ends_with(" chat");
      const Task task = read_task({.task = name, .folder = kTasks, .shots = std::stoll(shots)});
      const auto scores = score_texts(model, encode_task(task, tokenizer, checkpoint.config.max_position_embeddings, chat),
                                      {.greedy = true}, world);
      ASSERT_EQ(task.documents.size(), expected["samples"].size());
      // The harness keeps MMLU's subjects apart.
      std::vector<size_t> order(task.documents.size());
      std::iota(order.begin(), order.end(), size_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](size_t a, size_t b) { return task.documents[a].subject < task.documents[b].subject; });
      for (size_t i = 0; i < order.size(); ++i) {
        const TaskDocument& document = task.documents[order[i]];
        const nlohmann::json& sample = expected["samples"][i];
        if (task.definition->kind == TaskKind::rolling) {
          EXPECT_EQ(document.continuation(0), sample["arguments"][0][0]);
          double sum = 0;
          for (const TextScore& window : scores[order[i]]) sum += window.log_likelihood;
          EXPECT_NEAR(sum, sample["resps"][0][0].get<double>(), 2e-3);
          continue;
        }
        ASSERT_EQ(document.requests(), static_cast<int64_t>(sample["arguments"].size()));
        for (int64_t r = 0; r < document.requests(); ++r) {
          const auto at = static_cast<size_t>(r);
          const TaskRequest asked = task_request(task, order[i], r, chat ? &tokenizer : nullptr);
          EXPECT_EQ(asked.context, sample["arguments"][at][0]);
          EXPECT_EQ(asked.continuation, sample["arguments"][at][1]);
          const double value = sample["resps"][at][0];
          EXPECT_NEAR(scores[order[i]][at].log_likelihood, value, 1e-4 + 3e-6 * std::abs(value));
          EXPECT_EQ(scores[order[i]][at].greedy, sample["resps"][at][1]);
        }
      }
      size_t compared = 0;
      for (const TaskMetric& metric : task_metrics(task, scores)) {
        if (!expected["results"].contains(metric.task)) continue;
        const nlohmann::json& result = expected["results"][metric.task];
        const double value = result.at(metric.metric + ",none");
        EXPECT_NEAR(metric.value, value, 1e-5 * std::max(1.0, value)) << metric.task << " " << metric.metric;
        if (metric.metric.starts_with("acc")) {
          EXPECT_NEAR(metric.error.value(), result.at(metric.metric + "_stderr,none").get<double>(), 1e-9) << metric.metric;
        }
        ++compared;
      }
      size_t figures = 0;
      for (const auto& [subtask, result] : expected["results"].items()) {
        for (const auto& [key, value] : result.items()) figures += key.find("stderr") == std::string::npos;
      }
      EXPECT_EQ(compared, figures);
    }
  }
}

TEST(Tasks, RefuseAChatWithoutATemplate) {
  const TemporaryDirectory folder;
  write_text(folder / "tokenizer.json", read_text(fixture("tiny-llama") + "/tokenizer.json"));
  const Task task = read_task({.task = "piqa", .folder = kTasks});
  const Tokenizer tokenizer = load_tokenizer(folder / "tokenizer.json");
  EXPECT_THAT(refusal([&] { encode_task(task, tokenizer, 256, /*chat=*/true); }),
              HasSubstr("task piqa: the model has no chat template; leave out --chat"));
}

class TaskFiles : public ::testing::Test {
 protected:
  TemporaryDirectory folder_;
  std::string file(const std::string& name, const std::string& text) {
    write_text(folder_ / name, text);
    return folder_ / name;
  }
  std::string refused(const TaskSource& source) {
    return refusal([&] { read_task(source); });
  }
};

TEST_F(TaskFiles, AreFoundByTaskAndSplit) {
  const std::string row = R"({"text": "one two three"})";
  file("lambada_openai.jsonl", row + "\n" + row);
  EXPECT_EQ(read_task({.task = "lambada_openai", .folder = folder_.path().string()}).documents.size(), 2u);
  file("lambada_openai.test.jsonl", row);
  const Task task = read_task({.task = "lambada_openai", .folder = folder_.path().string()});
  EXPECT_EQ(task.documents.size(), 1u);
  EXPECT_THAT(task.file, HasSubstr("lambada_openai.test.jsonl"));
  EXPECT_EQ(task.documents[0].contexts[0], "one two");
  EXPECT_EQ(task.documents[0].continuations[0], " three");
}

TEST_F(TaskFiles, OfficialFormsAreRead) {
  const std::string nested =
      R"({"question": {"stem": "Why?", "choices": [{"text": "so", "label": "A"}, {"text": "no", "label": "B"}]}, "answerKey": "B"})";
  const Task arc = read_task({.task = "arc_easy", .file = file("arc.jsonl", nested)});
  EXPECT_EQ(arc.documents[0].contexts[0], "Question: Why?\nAnswer:");
  EXPECT_EQ(arc.documents[0].gold, 1);

  const std::string goals = R"({"goal": "g", "sol1": "a", "sol2": "b"})";
  file("valid-labels.lst", "1\n0\n");
  const Task piqa = read_task({.task = "piqa", .file = file("valid.jsonl", goals + "\n" + goals + "\n")});
  EXPECT_EQ(piqa.documents[0].gold, 1);
  EXPECT_EQ(piqa.documents[1].gold, 0);

  const Task boolq =
      read_task({.task = "boolq", .file = file("b.jsonl", R"({"passage": "p", "question": "q", "answer": true})")});
  EXPECT_EQ(boolq.documents[0].gold, 1);
  EXPECT_EQ(boolq.documents[0].question(), "p\nQuestion: q?\nAnswer:");
  EXPECT_EQ(boolq.documents[0].answer(), "yes");

  const std::string own = R"({"query": "Q", "choices": ["x", "größer"], "gold": 1})";
  const Task choices = read_task({.task = "multiple_choice", .file = file("own.jsonl", own)});
  EXPECT_EQ(choices.documents[0].continuations, (std::vector<std::string>{" x", " größer"}));
  EXPECT_EQ(choices.documents[0].lengths, (std::vector<int64_t>{1, 6}));

  const std::string joined = R"({"ctx": "Sailing: a boat", "endings": ["a", "b", "c", "d"], "label": 2})";
  EXPECT_EQ(read_task({.task = "hellaswag", .file = file("h.jsonl", joined)}).documents[0].contexts[0], "Sailing: a boat");
}

TEST_F(TaskFiles, WikitextRawIsCutIntoPages) {
  const Task task =
      read_task({.task = "wikitext",
                 .file = file("wikitext.raw", " \n = One = \n \n text @-@ one \n = = Part = = \n x \n = Two = \n y \n")});
  ASSERT_EQ(task.documents.size(), 2u);
  EXPECT_EQ(task.documents[0].continuation(0), " = One =\n\ntext-one\n== Part ==\nx ");
  EXPECT_EQ(task.documents[1].continuation(0), " = Two =\ny\n");
  EXPECT_EQ(task.documents[1].words, python_words(" = Two = \n y \n"));
}

TEST_F(TaskFiles, LimitCountsDocumentsOfEachSubject) {
  EXPECT_EQ(read_task({.task = "piqa", .folder = kTasks, .limit = 4}).documents.size(), 4u);
  EXPECT_EQ(read_task({.task = "mmlu", .folder = kTasks, .limit = 2}).documents.size(), 6u);
}

TEST_F(TaskFiles, Refusals) {
  EXPECT_THAT(refused({.task = "pika"}),
              HasSubstr("task 'pika' is unknown (did you mean piqa?); expected one of arc_challenge, "));
  EXPECT_THAT(refused({.task = "piqa"}), HasSubstr("task piqa: no data; expected --task-data FOLDER or --tasks piqa=FILE"));
  EXPECT_THAT(refused({.task = "piqa", .folder = folder_.path().string()}),
              HasSubstr("holds none of piqa.validation.jsonl, piqa.valid.jsonl, piqa.jsonl"));
  EXPECT_THAT(refused({.task = "piqa", .file = file("p.jsonl", R"({"goal": "g"})")}),
              HasSubstr("p.jsonl: line 1 has no \"label\", and there is no"));
  EXPECT_THAT(refused({.task = "piqa", .file = file("p.jsonl", R"({"goal": "g", "label": 0})")}),
              HasSubstr("line 1 has no string \"sol1\"; found keys goal, label"));
  EXPECT_THAT(refused({.task = "piqa", .file = file("p.jsonl", R"({"goal": "g", "label": 2, "sol1": "", "sol2": ""})")}),
              HasSubstr("names choice 2"));
  file("q-labels.lst", "1\n");
  EXPECT_THAT(refused({.task = "piqa", .file = file("q.jsonl", "{\"goal\": \"g\"}\n{\"goal\": \"h\"}")}),
              HasSubstr("1 labels for the 2 rows"));
  EXPECT_THAT(
      refused({.task = "arc_easy",
               .file = file("a.jsonl", R"({"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "E"})")}),
      HasSubstr("answerKey \"E\", which is the label of none of its 1 choices"));
  EXPECT_THAT(refused({.task = "winogrande", .file = file("w.jsonl", R"({"sentence": "none"})")}), HasSubstr("has no '_'"));
  EXPECT_THAT(refused({.task = "lambada_openai", .file = file("l.jsonl", R"({"text": "word"})")}),
              HasSubstr("a text of one word"));
  EXPECT_THAT(
      refused({.task = "mmlu", .file = file("m.jsonl", R"({"question": "q", "subject": "s", "choices": ["a"], "answer": 0})")}),
      HasSubstr("1 choices; expected 4"));
  EXPECT_THAT(refused({.task = "wikitext", .folder = kTasks, .shots = 1}),
              HasSubstr("task wikitext: takes no worked examples"));
  EXPECT_THAT(
      refused({.task = "piqa", .file = kTasks + "/piqa.validation.jsonl", .folder = folder_.path().string(), .shots = 1}),
      HasSubstr("its worked examples are read from piqa.train.jsonl"));
  EXPECT_THAT(refused({.task = "piqa", .folder = kTasks, .shots = 9}),
              HasSubstr("9 rows; expected at least 10 for 9 worked examples"));
  EXPECT_THAT(refused({.task = "mmlu", .folder = kTasks, .shots = 4}), HasSubstr("3 worked examples for subject"));
}

TEST(EncodeRequest, FollowsTheHarness) {
  const Tokenizer tokenizer = load_tokenizer(fixture("tiny-llama"));
  const ScoredText pair = encode_request(tokenizer, "Ada opens", " the lamp", 100, "here");
  EXPECT_EQ(pair.tokens, tokenizer.encode("Ada opens the lamp"));
  EXPECT_EQ(pair.score_from, static_cast<int64_t>(tokenizer.encode("Ada opens").size()));
  // Spaces at the context's end count to the continuation.
  const ScoredText spaced = encode_request(tokenizer, "Ada opens ", "the lamp", 100, "here");
  EXPECT_EQ(spaced.tokens, pair.tokens);
  EXPECT_EQ(spaced.score_from, pair.score_from);
  // An empty context is BOS.
  const ScoredText bare = encode_request(tokenizer, "", "the lamp", 100, "here");
  EXPECT_EQ(bare.tokens[0], tokenizer.bos_id().value());
  EXPECT_EQ(bare.score_from, 1);
  // Too long a text loses its beginning.
  const ScoredText cut =
      encode_request(tokenizer, "Ada opens", " the lamp", static_cast<int64_t>(pair.tokens.size()) - 2, "here");
  EXPECT_EQ(cut.tokens, std::vector<int32_t>(pair.tokens.begin() + 1, pair.tokens.end()));
  EXPECT_EQ(cut.score_from, pair.score_from - 1);
  EXPECT_THAT(refusal([&] { encode_request(tokenizer, "Ada", "", 100, "here"); }),
              HasSubstr("here: a choice adds no token to its context"));
  EXPECT_THAT(refusal([&] { encode_request(tokenizer, "Ada", " the lamp in the north", 1, "here"); }),
              HasSubstr("expected at most the 1 that the model reads"));
}

TEST(RollingWindows, ScoreEveryTokenOnce) {
  const Tokenizer tokenizer = load_tokenizer(fixture("tiny-llama"));
  const std::string text = "Ada opens the lamp by the sea and paints the bridge.";
  std::vector<int32_t> ids = tokenizer.encode(text);
  const auto windows = rolling_windows(tokenizer, text, 5);
  std::vector<int32_t> scored;
  for (const ScoredText& window : windows) {
    EXPECT_LE(window.tokens.size(), 6u);
    EXPECT_GE(window.score_from, 1);
    scored.insert(scored.end(), window.tokens.begin() + window.score_from, window.tokens.end());
  }
  EXPECT_EQ(scored, ids);
  EXPECT_TRUE(rolling_windows(tokenizer, "", 5).empty());
}

TEST(BestChoice, TakesTheFirstOfEquals) {
  const TaskDocument document{.lengths = {2, 4, 1}};
  const std::vector<TextScore> scores{{-2}, {-2}, {-3}};
  EXPECT_EQ(best_choice(document, scores, false), 0);
  EXPECT_EQ(best_choice(document, scores, true), 1);
}

TEST(PythonText, EqualsPython) {
  EXPECT_EQ(python_strip("\u2003 a b\x1c\n"), "a b");
  EXPECT_EQ(python_capitalize("éVA Said"), "Éva said");
  EXPECT_EQ(python_replace("aaaa", "aa", "b"), "bb");
  EXPECT_EQ(python_length("größer"), 6);
  EXPECT_EQ(python_words(" a  b "), 4);  // re.split gives '', 'a', 'b', ''
}

}  // namespace
}  // namespace cmoe
