// cmoe doctor: what this machine offers, and which kernels will run.

#include <fmt/format.h>

#include <cstdio>
#include <set>

#include "backend/cpu_info.h"
#include "backend/gpu_info.h"
#include "base/format.h"
#include "base/parallel.h"
#include "base/version.h"
#include "comm/nccl_version.h"
#include "jobs/jobs.h"
#include "jobs/session.h"
#include "tensor/hdf5.h"

namespace cmoe::jobs {

int doctor(int argc, char** argv, Environment& environment) {
  Session session(environment);
  Options options("cmoe doctor", "Says what this machine offers and which kernels will run.");
  session.declare(options);
  if (!session.parse(options, argc, argv)) return 0;
  const std::vector<std::string> hosts = session.world().all_gather_strings(host_name());
  if (!session.is_root()) return 0;
  Table table({"cmoe", version_string()});
  table.add_row({"ranks", fmt::format("{} on {} node(s)", session.world().size(),
                                      std::set<std::string>(hosts.begin(), hosts.end()).size())});
  table.add_row({"threads per rank", std::to_string(num_threads())});
  table.add_row({"MPI", Environment::library_version()});
  table.add_row({"files", hdf5_version()});
  table.add_row({"backend", session.backend()->description()});
  const GpuInfo gpus = gpu_info();
  if (!gpus.versions.empty()) table.add_row({"CUDA", gpus.versions});
  table.add_row({"NCCL", nccl_version()});
  for (const GpuDevice& gpu : gpus.devices) {
    table.add_row({"GPU", fmt::format("{}, {}, compute capability {}.{}; not used: no operation has a GPU kernel yet", gpu.name,
                                      format_bytes(gpu.memory_bytes), gpu.major, gpu.minor)});
  }
  if (!gpus.reason.empty()) table.add_row({"GPU", gpus.reason});
  std::fputs(table.text().c_str(), stdout);
  std::printf("\n%s\n", cpu_description().c_str());
  return 0;
}

}  // namespace cmoe::jobs
