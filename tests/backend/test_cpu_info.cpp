#include <gmock/gmock.h>

#include <cstdlib>
#include <thread>

#include "backend/oracle.h"

namespace cmoe {
namespace {

using namespace oracle;
using ::testing::HasSubstr;

struct Variable {
  Variable(const char* name, const char* value) : name_(name) { value ? setenv(name, value, 1) : unsetenv(name); }
  ~Variable() { unsetenv(name_); }
  const char* name_;
};

TEST(CpuInfo, TheEnvironmentCapsTheInstructionSet) {
  Variable cap("CMOE_CPU_ISA", "generic");
  EXPECT_EQ(cpu_isa(), CpuIsa::generic);
  EXPECT_THAT(make_cpu_backend()->description(), HasSubstr("f32 kernels generic, bf16 widened to f32"));
  EXPECT_THAT(cpu_description(), HasSubstr("f32 kernels: generic"));
}

TEST(CpuInfo, RefusesAnUnknownInstructionSet) {
  Variable cap("CMOE_CPU_ISA", "avx1024");
  EXPECT_THAT(message_of([] { cpu_isa(); }), HasSubstr("CMOE_CPU_ISA: 'avx1024', expected generic, avx2, avx512"));
}

TEST(CpuInfo, SharesCpusAmongTheRanksOfANode) {
  Variable omp("OMP_NUM_THREADS", nullptr), slurm("SLURM_CPUS_PER_TASK", nullptr);
  const int all = default_threads(1);
  EXPECT_GE(all, 1);
  EXPECT_LE(all, static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_EQ(default_threads(1000000), 1);
  EXPECT_EQ(default_threads(0), all);
  {
    Variable set("OMP_NUM_THREADS", "1");
    EXPECT_EQ(default_threads(1), 1);
  }
  {
    Variable set("SLURM_CPUS_PER_TASK", "100000");
    EXPECT_EQ(default_threads(1), all);
  }
  Variable nonsense("OMP_NUM_THREADS", "many");
  EXPECT_EQ(default_threads(1), all);
}

}  // namespace
}  // namespace cmoe
