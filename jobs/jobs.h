#pragma once

#include "comm/communicator.h"

namespace cmoe::jobs {

/// One sub-command each: options, data, model, one call, save. Returns the exit code; errors are thrown.
int inspect(int argc, char** argv, Environment& environment);
int tokenize(int argc, char** argv, Environment& environment);
int profile(int argc, char** argv, Environment& environment);
int carve(int argc, char** argv, Environment& environment);
int analyze(int argc, char** argv, Environment& environment);
int evaluate(int argc, char** argv, Environment& environment);
int finetune(int argc, char** argv, Environment& environment);
int merge(int argc, char** argv, Environment& environment);
int generate(int argc, char** argv, Environment& environment);
int logits(int argc, char** argv, Environment& environment);
int doctor(int argc, char** argv, Environment& environment);

}  // namespace cmoe::jobs
