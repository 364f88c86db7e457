// The CMOE_* variables that mean something.

#include "jobs/variables.h"

#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/nearest.h"
#include "base/options.h"

namespace cmoe::jobs {
namespace {

// Of all sub-commands: one set for another command is no mistake.
constexpr char kOptions[] =
    "adapter adapter-every balance balance-gamma batch batch-size calibration chat clip compensation config count dataset "
    "dispatch-chunks dispatcher distill distill-weight documents dry-run dtype energy-rounds eval-dataset eval-every "
    "eval-windows "
    "expert-parallel expert-rank expert-stats experts fewshot force ids-out iterations json k-act limit log-samples lora-alpha "
    "lora-dropout lora-rank lora-targets lr marker match-layers max-batch max-memory max-step-tokens max-tokens model "
    "moe-stats nll-weight no-router-scale out out-dtype partition path perplexity placement plan-link profile prompt quiet "
    "rank-timeout recipe recompute redundant-experts refit-lambda representative resume router router-lambda router-lr "
    "router-regression rslora samples save-every scale-lr schedule score seed selector seq-len shard-mb step-tokens stride "
    "system task-data tasks teacher teacher-rows temperature text text-format threads threshold-rate threshold-samples "
    "tokenizer-pre top-k top-p trace train-router update-card warmup-steps weight-decay window-offsets windows wire-dtype";

// Read by the program outside its options, by the demo and by the tests.
constexpr char kOthers[] =
    "CMOE_BINARY CMOE_CPU_ISA CMOE_DEMO_MODEL CMOE_DEMO_RANKS CMOE_DEMO_WINDOWS CMOE_JOBS CMOE_PEERS_VENV CMOE_SHARED_DATA "
    "CMOE_TEST_KILLS CMOE_TEST_SANITIZED";

}  // namespace

void refuse_unknown_variables() {
  std::vector<std::string> known;
  std::istringstream options(kOptions), others(kOthers);
  for (std::string option; options >> option;) known.push_back(environment_name(option));
  for (std::string name; others >> name;) known.push_back(name);
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry, name = text.substr(0, text.find('='));
    if (!name.starts_with("CMOE_") || std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string hint = nearest(name, known);
    fail("environment {}: unknown; {}", name,
         hint.empty() ? "unset it; cmoe COMMAND --help names the options" : "did you mean " + hint + "?");
  }
}

}  // namespace cmoe::jobs
