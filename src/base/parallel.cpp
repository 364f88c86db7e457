#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace cmoe {
namespace {

thread_local bool inside_parallel_for = false;

// One call of parallel_for. Threads take ranges off `next` until none is left.
struct Job {
  const std::function<void(int64_t, int64_t)>* body;
  int64_t count, grain;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // written once, by whoever sets `failed`

  void work() {
    inside_parallel_for = true;
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count || failed.load(std::memory_order_relaxed)) break;
      try {
        (*body)(begin, std::min(begin + grain, count));
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    inside_parallel_for = false;
  }
};

// Workers sleep between jobs; a short spin first, because a forward pass issues thousands of short jobs.
class Pool {
 public:
  explicit Pool(int workers) {
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { run(); });
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void execute(Job& job) {
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      busy_.store(static_cast<int>(threads_.size()));
      generation_.fetch_add(1);
    }
    wake_.notify_all();
    job.work();
    for (int spin = 0; busy_.load() > 0; ++spin) {
      if (spin > kSpins) std::this_thread::yield();
    }
  }

  int workers() const { return static_cast<int>(threads_.size()); }

 private:
  static constexpr int kSpins = 2000;

  void run() {
    uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < kSpins && generation_.load() == seen; ++spin) {
      }
      Job* job;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        seen = generation_.load();
        if (stop_) return;
        job = job_;
      }
      job->work();
      busy_.fetch_sub(1);
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> busy_{0};
  Job* job_ = nullptr;
  bool stop_ = false;
};

int threads = 1;
std::unique_ptr<Pool> pool;

}  // namespace

int num_threads() { return threads; }

void set_num_threads(int count) {
  threads = std::max(count, 1);
  pool.reset();
}

void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  grain = std::max<int64_t>(grain, 1);
  if (count <= 0) return;
  if (threads == 1 || count <= grain || inside_parallel_for) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count));
    return;
  }
  if (!pool) pool = std::make_unique<Pool>(threads - 1);
  Job job{.body = &body, .count = count, .grain = grain, .error = {}};
  pool->execute(job);
  if (job.failed) std::rethrow_exception(job.error);
}

}  // namespace cmoe
