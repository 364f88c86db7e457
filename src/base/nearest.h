#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cmoe {

/// The candidate that a typing error most likely meant: the fewest insertions, deletions and changes away, at most two or a
/// third of the name's length; the first of equals; "" when none is near.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace cmoe
