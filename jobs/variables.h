#pragma once

namespace cmoe::jobs {

/// A misspelt variable would be an option lost in silence. @throws Error for a CMOE_* variable of the environment that is
/// neither an option of some sub-command nor read elsewhere; it names the nearest.
void refuse_unknown_variables();

}  // namespace cmoe::jobs
