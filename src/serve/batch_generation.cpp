#include "serve/batch_generation.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/format.h"
#include "base/stage.h"
#include "base/timer.h"
#include "comm/stop.h"
#include "model/expert_plan.h"
#include "serve/admission.h"

namespace cmoe {
namespace {

// A sequence under way on this rank.
struct Sequence {
  int64_t request;
  KvCache cache;
  Sampler sampler;
  size_t prompt_read = 0;      // tokens of the prompt that the cache holds
  std::vector<int32_t> input;  // of this step
};

// This rank's sequences, and the answers of those that ended here.
class RankBatch {
 public:
  RankBatch(const Transformer& model, std::span<const BatchRequest> requests, const BatchLimits& limits)
      : model_(model), requests_(requests), limits_(limits), answers_(requests.size()) {}

  void begin(int64_t request) {
    const BatchRequest& r = requests_[static_cast<size_t>(request)];
    const int64_t capacity = static_cast<int64_t>(r.prompt.size()) + r.max_tokens;
    running_.push_back(std::make_unique<Sequence>(
        Sequence{.request = request, .cache = KvCache(model_.config(), capacity), .sampler = Sampler(r.sampling)}));
  }

  // One step of all sequences: the next token of those that have read their prompt, and pieces of the other prompts. Returns
  // the requests that ended. Collective.
  std::vector<int64_t> step(MoeObserver* observer) {
    choose_input();
    std::vector<SequenceStep> steps;
    std::vector<Sequence*> drawing;  // those whose last row says what comes next
    std::vector<int32_t> drawing_rows;
    int32_t rows = 0;
    for (const auto& sequence : running_) {
      steps.push_back({.tokens = sequence->input, .cache = &sequence->cache});
      rows += static_cast<int32_t>(sequence->input.size());
      if (sequence->input.empty() || sequence->prompt_read < prompt(*sequence).size()) continue;
      drawing.push_back(sequence.get());
      drawing_rows.push_back(rows - 1);
    }
    const Tensor hidden = model_.forward(Batch(steps), observer);
    Tensor last(DType::f32, {static_cast<int64_t>(drawing.size()), model_.config().hidden_size});
    model_.backend().gather_rows(hidden, drawing_rows, last);
    const Tensor logits = model_.logits(last);
    std::vector<int64_t> ended;
    for (size_t i = 0; i < drawing.size(); ++i) {
      if (draw(*drawing[i], logits.rows(static_cast<int64_t>(i), static_cast<int64_t>(i) + 1).span<float>()))
        ended.push_back(drawing[i]->request);
    }
    std::erase_if(running_, [&](const auto& s) { return std::find(ended.begin(), ended.end(), s->request) != ended.end(); });
    return ended;
  }

  const BatchAnswer& answer(int64_t request) const { return answers_[static_cast<size_t>(request)]; }

 private:
  const std::vector<int32_t>& prompt(const Sequence& s) const { return requests_[static_cast<size_t>(s.request)].prompt; }

  void choose_input() {
    auto room = static_cast<size_t>(limits_.max_step_tokens);
    for (const auto& sequence : running_) {
      sequence->input.clear();
      if (sequence->prompt_read < prompt(*sequence).size()) continue;
      sequence->input.push_back(answer(sequence->request).tokens.back());
      --room;
    }
    for (const auto& sequence : running_) {
      const std::vector<int32_t>& text = prompt(*sequence);
      const size_t count = std::min(room, text.size() - sequence->prompt_read);
      if (count == 0) continue;
      const auto begin = text.begin() + static_cast<ptrdiff_t>(sequence->prompt_read);
      sequence->input.assign(begin, begin + static_cast<ptrdiff_t>(count));
      sequence->prompt_read += count;
      room -= count;
    }
  }

  // Adds the next token; true when the sequence ends with it.
  bool draw(Sequence& sequence, std::span<const float> logits) {
    BatchAnswer& answer = answers_[static_cast<size_t>(sequence.request)];
    const std::vector<int32_t>& ends = model_.config().eos_token_ids;
    const int32_t next = sequence.sampler.next(logits);
    answer.ended = std::find(ends.begin(), ends.end(), next) != ends.end();
    if (answer.ended) return true;
    answer.tokens.push_back(next);
    return static_cast<int64_t>(answer.tokens.size()) == requests_[static_cast<size_t>(sequence.request)].max_tokens;
  }

  const Transformer& model_;
  std::span<const BatchRequest> requests_;
  BatchLimits limits_;
  std::vector<BatchAnswer> answers_;
  std::vector<std::unique_ptr<Sequence>> running_;
};

int64_t cache_bytes(const ModelConfig& config, const BatchRequest& request) {
  return KvCache::bytes(config, static_cast<int64_t>(request.prompt.size()) + request.max_tokens);
}

void check_requests(const ModelConfig& config, std::span<const BatchRequest> requests, const BatchLimits& limits) {
  CMOE_CHECK(limits.max_batch >= 1 && limits.max_step_tokens >= limits.max_batch,
             "generate: max_batch {} and max_step_tokens {}; expected at least one sequence, and a token for each",
             limits.max_batch, limits.max_step_tokens);
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto length = static_cast<int64_t>(requests[i].prompt.size());
    CMOE_CHECK(length > 0, "generate: prompt {} has no tokens", i + 1);
    CMOE_CHECK(requests[i].max_tokens >= 1, "generate: prompt {} asks for {} new tokens; expected at least 1", i + 1,
               requests[i].max_tokens);
    CMOE_CHECK(length + requests[i].max_tokens <= config.max_position_embeddings,
               "generate: prompt {} has {} tokens, and {} new ones are more than the model's {} positions", i + 1, length,
               requests[i].max_tokens, config.max_position_embeddings);
  }
}

// Room for KV caches on every rank. Collective.
std::vector<int64_t> plan_memory(const Transformer& model, std::span<const BatchRequest> requests, const BatchLimits& limits,
                                 Communicator& world) {
  constexpr int64_t kUnlimited = int64_t{1} << 62;
  if (limits.max_memory_bytes == 0) return std::vector<int64_t>(static_cast<size_t>(world.size()), kUnlimited);
  const int64_t weights = model.weight_bytes(), activations = activation_bytes(model.config(), limits.max_step_tokens);
  const std::array<int64_t, 2> mine{weights, limits.max_memory_bytes - weights - activations};
  const std::vector<int64_t> all = world.all_gather_v(std::span<const int64_t>(mine));
  std::vector<int64_t> room;
  for (size_t r = 0; r < all.size(); r += 2) {
    CMOE_CHECK(
        all[r + 1] >= 0,
        "generate: rank {} needs {} for its weights and {} for a step of {} tokens; expected at most --max-memory {}; use "
        "more ranks, or a smaller --max-step-tokens",
        r / 2, format_bytes(all[r]), format_bytes(activations), limits.max_step_tokens, format_bytes(limits.max_memory_bytes));
    room.push_back(all[r + 1]);
  }
  const auto best = std::max_element(room.begin(), room.end());
  for (size_t i = 0; i < requests.size(); ++i) {
    const int64_t needed = cache_bytes(model.config(), requests[i]);
    CMOE_CHECK(
        needed <= *best,
        "generate: the KV cache of prompt {} takes {} ({} + {} tokens); expected at most {}, what --max-memory {} leaves on "
        "rank {} beside {} of weights and {} for a step",
        i + 1, format_bytes(needed), requests[i].prompt.size(), requests[i].max_tokens, format_bytes(*best),
        format_bytes(limits.max_memory_bytes), best - room.begin(),
        format_bytes(all[2 * static_cast<size_t>(best - room.begin())]), format_bytes(activations));
  }
  return room;
}

// Rank 0's admissions on all ranks, or nothing when all is done. Collective.
std::optional<std::vector<Admission>> share_plan(AdmissionQueue* queue, Communicator& world) {
  constexpr int64_t kDone = -1;
  std::vector<Admission> plan;
  std::array<int64_t, 1> count{kDone};
  if (queue && !queue->all_done()) {
    plan = queue->admit();
    count[0] = static_cast<int64_t>(plan.size());
  }
  world.broadcast(std::span<int64_t>(count), 0);
  if (count[0] == kDone) return std::nullopt;
  plan.resize(static_cast<size_t>(count[0]));
  world.broadcast(std::span<Admission>(plan), 0);
  return plan;
}

// Every rank's answers on all ranks. Collective.
std::vector<BatchAnswer> share_answers(const RankBatch& batch, const std::vector<int64_t>& finished, size_t requests,
                                       Communicator& world) {
  std::vector<int64_t> mine;  // request, ended, number of tokens, tokens
  for (int64_t request : finished) {
    const BatchAnswer& answer = batch.answer(request);
    mine.insert(mine.end(), {request, answer.ended ? 1 : 0, static_cast<int64_t>(answer.tokens.size())});
    mine.insert(mine.end(), answer.tokens.begin(), answer.tokens.end());
  }
  const std::vector<int64_t> all = world.all_gather_v(std::span<const int64_t>(mine));
  std::vector<BatchAnswer> answers(requests);
  for (size_t at = 0; at < all.size();) {
    BatchAnswer& answer = answers[static_cast<size_t>(all[at])];
    answer.ended = all[at + 1] != 0;
    const auto begin = all.begin() + static_cast<ptrdiff_t>(at) + 3;
    for (auto token = begin; token != begin + all[at + 2]; ++token) answer.tokens.push_back(static_cast<int32_t>(*token));
    at += 3 + static_cast<size_t>(all[at + 2]);
  }
  return answers;
}

}  // namespace

std::vector<BatchAnswer> generate_batch(const Transformer& model, std::span<const BatchRequest> requests,
                                        const BatchLimits& limits, Communicator& world, MoeObserver* observer,
                                        BatchReport* report, const std::function<void(int64_t answers)>& on_step) {
  check_requests(model.config(), requests, limits);
  std::vector<int64_t> kv_bytes;
  for (const BatchRequest& request : requests) kv_bytes.push_back(cache_bytes(model.config(), request));
  const std::vector<int64_t> room = plan_memory(model, requests, limits, world);
  std::unique_ptr<AdmissionQueue> queue;
  if (world.rank() == 0) queue = std::make_unique<AdmissionQueue>(std::move(kv_bytes), room, limits.max_batch);

  RankBatch batch(model, requests, limits);
  BatchReport measured;
  std::vector<int64_t> finished;  // on this rank
  int64_t answers = 0, under_way = 0;
  Timer timer;
  while (const auto plan = share_plan(queue.get(), world)) {
    set_stage("generate");
    stop_together(world, "generate");
    for (const Admission& admission : *plan) {
      if (admission.rank == world.rank()) batch.begin(admission.request);
    }
    under_way += static_cast<int64_t>(plan->size());
    measured.most_sequences = std::max(measured.most_sequences, under_way);
    const std::vector<int64_t> ended = batch.step(observer);
    finished.insert(finished.end(), ended.begin(), ended.end());
    const std::vector<int64_t> all_ended = world.all_gather_v(std::span<const int64_t>(ended));
    for (int64_t request : all_ended) {
      if (queue) queue->release(request);
    }
    under_way -= static_cast<int64_t>(all_ended.size());
    answers += static_cast<int64_t>(all_ended.size());
    ++measured.steps;
    if (on_step) on_step(answers);
  }
  measured.seconds = timer.seconds();
  std::vector<BatchAnswer> result = share_answers(batch, finished, requests.size(), world);
  for (size_t i = 0; i < requests.size(); ++i) {
    measured.prompt_tokens += static_cast<int64_t>(requests[i].prompt.size());
    measured.new_tokens += static_cast<int64_t>(result[i].tokens.size());
  }
  if (report) *report = measured;
  return result;
}

}  // namespace cmoe
