#include <gtest/gtest.h>

#include "comm/communicator.h"
#include "support/world.h"

namespace {
cmoe::Environment* environment_of_main = nullptr;
}

cmoe::Communicator& cmoe::test_world() { return environment_of_main->world(); }

// Every test program is an SPMD program: alone it is a world of one rank. Only rank 0 prints gtest's report; another rank
// prints its failures, and its exit code fails the run.
int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  cmoe::Environment environment(argc, argv);
  environment_of_main = &environment;
  if (environment.world().rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    class FailurePrinter : public ::testing::EmptyTestEventListener {
      void OnTestPartResult(const ::testing::TestPartResult& result) override {
        if (result.failed()) {
          std::fprintf(stderr, "%s:%d: %s\n", result.file_name() ? result.file_name() : "?", result.line_number(),
                       result.summary());
        }
      }
    };
    listeners.Append(new FailurePrinter);
  }
  return RUN_ALL_TESTS();
}
