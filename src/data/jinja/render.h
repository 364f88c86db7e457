#pragma once

#include <string>

#include "data/jinja/syntax.h"

namespace cmoe::jinja {

/// The text of a template with these variables. Throws Error with the line, naming what does not fit.
std::string render(const Block& block, const Dict& variables);

}  // namespace cmoe::jinja
