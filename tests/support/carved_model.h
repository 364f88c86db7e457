#pragma once

#include <gtest/gtest.h>

#include <string>

#include "support/program.h"
#include "support/tiny_model.h"

namespace cmoe {

/// Carves tiny-llama S3A3E8 with `cmoe profile` and `cmoe carve`, in `folder`; the carved model's folder.
inline std::string carve_tiny_llama(const std::string& folder) {
  const std::string path = folder + "/carved", profile = folder + "/tiny.h5";
  const std::vector<std::string> profiling{
      "profile",   "--model", fixture("tiny-llama"), "--dataset", fixture("text") + "/train.txt",
      "--samples", "4",       "--seq-len",           "128",       "--out",
      profile};
  const std::vector<std::string> carving{"carve", "--model", fixture("tiny-llama"), "--profile", profile, "--experts", "S3A3E8",
                                         "--out", path};
  for (const auto& words : {profiling, carving}) {
    const ProgramResult done = run_cmoe(words);
    EXPECT_EQ(done.code, 0) << done.err;
  }
  return path;
}

}  // namespace cmoe
