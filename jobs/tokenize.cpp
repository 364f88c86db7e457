// cmoe tokenize: text to token ids, and back.

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/load_tokenizer.h"
#include "data/text.h"
#include "jobs/jobs.h"
#include "jobs/session.h"

namespace cmoe::jobs {

int tokenize(int argc, char** argv, Environment& environment) {
  Session session(environment);
  std::string model_path, text_format = "auto", prompt, pre;
  std::vector<std::string> datasets;
  bool json = false, count = false;
  Options options("cmoe tokenize", "Turns text into the token ids of a model, one stream; prints id and token, one a line.");
  options.add("model", &model_path, "Hugging Face folder, GGUF file, or a folder that cmoe wrote");
  options.add("text", &datasets, "text file");
  options.add("prompt", &prompt, "text given here instead of in a file");
  options.add_choice("text-format", &text_format, {"auto", "plain", "jsonl", "wikitext"}, "how to read the text");
  options.add("tokenizer-pre", &pre, "pre-tokenizer instead of the one that a GGUF file names, such as smollm-digits");
  options.add("json", &json, "print {\"ids\": [...]} instead");
  options.add("count", &count, "print the number of tokens instead");
  options.require("model");
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  CMOE_CHECK(prompt.empty() != datasets.empty(), "tokenize: expected either --text or --prompt");

  const Tokenizer tokenizer = load_tokenizer(model_path, pre);
  const std::vector<int32_t> ids = prompt.empty() ? read_tokens(tokenizer, datasets, text_format) : tokenizer.encode(prompt);
  if (!session.is_root()) return 0;
  if (json) {
    std::printf("%s\n", nlohmann::json{{"ids", ids}}.dump().c_str());
  } else if (count) {
    std::printf("%zu\n", ids.size());
  } else {
    for (int32_t id : ids) std::printf("%d\t%s\n", id, nlohmann::json(tokenizer.token_text(id)).dump().c_str());
  }
  return 0;
}

}  // namespace cmoe::jobs
