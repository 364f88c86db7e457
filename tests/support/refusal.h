#pragma once

#include <string>

#include "base/error.h"

namespace cmoe {

/// The message of the Error that `call` throws; a sentence that no test expects when it throws none.
template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace cmoe
