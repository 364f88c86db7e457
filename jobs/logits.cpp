// cmoe logits: a model's logits on the head of a text, for comparison with other programs.

#include <cstdio>

#include "base/atomic_file.h"
#include "base/error.h"
#include "data/load_tokenizer.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "model/transformer.h"

namespace cmoe::jobs {
namespace {

// NumPy's .npy, version 1.0: magic, header length, a Python dict padded to 64 bytes, the data.
void write_npy(const std::string& path, const char* type, const Shape& shape, const void* data, int64_t bytes) {
  std::string dimensions;
  for (int64_t extent : shape) dimensions += std::to_string(extent) + ",";
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", type, dimensions);
  header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ');
  header += '\n';
  AtomicFile file(path);
  const auto length = static_cast<uint16_t>(header.size());
  file.write(std::string_view("\x93NUMPY\x01\x00", 8));
  file.write(&length, 2);
  file.write(header);
  file.write(data, bytes);
  file.commit();
}

}  // namespace

int logits(int argc, char** argv, Environment& environment) {
  Session session(environment);
  std::string model_path, adapter, text_format = "auto", dtype = "f32", out, ids_out;
  std::vector<std::string> datasets;
  int64_t max_tokens = 512;
  Options options("cmoe logits", "Writes the logits of the first tokens of a text as a NumPy file, f32 [tokens, vocabulary].");
  options.add("model", &model_path, "Hugging Face folder, GGUF file, or a folder that cmoe wrote");
  options.add("adapter", &adapter, "LoRA adapter to put on the model, of cmoe finetune or PEFT");
  options.add("text", &datasets, "text file");
  options.add_choice("text-format", &text_format, {"auto", "plain", "jsonl", "wikitext"}, "how to read the text");
  options.add("max-tokens", &max_tokens, "tokens at most", {.least = 1});
  options.add_choice("dtype", &dtype, {"f32", "bf16"}, "type of the weights while running");
  options.add("out", &out, ".npy file of the logits");
  options.add("ids-out", &ids_out, ".npy file of the token ids");
  for (const char* name : {"model", "text", "out"}) options.require(name);
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  CMOE_CHECK(session.world().size() == 1, "logits: runs on one rank; started on {}", session.world().size());

  const Checkpoint checkpoint = session.open_model(model_path, adapter);
  std::vector<int32_t> ids = read_tokens(load_tokenizer(model_path), datasets, text_format);
  if (static_cast<int64_t>(ids.size()) > max_tokens) ids.resize(static_cast<size_t>(max_tokens));
  const Transformer model(checkpoint, session.backend(), parse_dtype(dtype));
  KvCache cache(checkpoint.config, static_cast<int64_t>(ids.size()), KvCache::Keep::one_layer);
  const SequenceStep step{.tokens = ids, .cache = &cache};
  const Tensor result = model.logits(model.forward(Batch(std::span(&step, 1))));
  write_npy(out, "<f4", result.shape(), result.raw(), result.bytes());
  if (!ids_out.empty())
    write_npy(ids_out, "<i4", {static_cast<int64_t>(ids.size())}, ids.data(), static_cast<int64_t>(ids.size() * 4));
  return 0;
}

}  // namespace cmoe::jobs
