#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "comm/launch.h"
#include "support/world.h"

namespace cmoe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

EnvironmentLookup table(std::map<std::string, std::string> variables) {
  return [variables = std::move(variables)](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
}

TEST(Launch, AProgramWithoutALauncherIsFine) {
  EXPECT_FALSE(find_launch_problem(0, table({})));
  EXPECT_FALSE(find_launch_problem(1, table({})));
  EXPECT_TRUE(started_alone(table({{"HOME", "/"}})));
}

TEST(Launch, TheShellOfABatchScriptIsNotAStep) {
  const auto batch = table({{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}});
  EXPECT_FALSE(find_launch_problem(0, batch));
  EXPECT_FALSE(find_launch_problem(1, batch));
  EXPECT_TRUE(started_alone(batch));
}

TEST(Launch, SrunWithoutPmixIsRefusedBeforeAndAfterInit) {
  const auto step = table({{"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "2"}, {"SLURM_NTASKS", "4"}});
  for (int seen : {0, 1}) {
    const auto problem = find_launch_problem(seen, step);
    ASSERT_TRUE(problem);
    EXPECT_THAT(*problem, AllOf(HasSubstr("srun started 4 copies"), HasSubstr("world of 1"), HasSubstr("srun --mpi=pmix")));
  }
  EXPECT_FALSE(find_launch_problem(4, step));
  EXPECT_FALSE(find_launch_problem(0, table({{"SLURM_STEP_NUM_TASKS", "4"}, {"PMIX_RANK", "2"}})));
  EXPECT_TRUE(find_launch_problem(1, table({{"SLURM_STEP_NUM_TASKS", "4"}, {"PMIX_RANK", "2"}})));
  EXPECT_FALSE(find_launch_problem(1, table({{"SLURM_STEP_NUM_TASKS", "1"}})));
}

TEST(Launch, MpirunInsideAStepCounts) {
  EXPECT_FALSE(find_launch_problem(1, table({{"SLURM_STEP_NUM_TASKS", "4"}, {"OMPI_COMM_WORLD_SIZE", "1"}})));
  const auto problem = find_launch_problem(1, table({{"OMPI_COMM_WORLD_SIZE", "2"}}));
  ASSERT_TRUE(problem);
  EXPECT_THAT(*problem, AllOf(HasSubstr("mpirun started 2 copies"), HasSubstr("linked with")));
}

TEST(Launch, AnotherMpisLauncherIsRefused) {
  const auto problem = find_launch_problem(0, table({{"PMI_SIZE", "3"}, {"PMI_RANK", "1"}}));
  ASSERT_TRUE(problem);
  EXPECT_THAT(*problem, AllOf(HasSubstr("another MPI started 3 copies"), HasSubstr("mpirun -n 3")));
}

TEST(LaunchDeathTest, AbortOfAProgramAloneSaysOneLineAndKeepsTheCode) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(test_world().abort("disk on fire", 75), ::testing::ExitedWithCode(75), "\\[rank 0/1 .*\\] disk on fire\n$");
}

}  // namespace
}  // namespace cmoe
