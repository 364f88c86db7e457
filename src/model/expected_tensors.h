#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "tensor/tensor.h"

namespace cmoe {

/// A tensor that a model has by its config.
struct ExpectedTensor {
  std::string name;  ///< Hugging Face's
  Shape shape;
  std::string dimensions;  ///< names of the extents, for messages: "intermediate_size, hidden_size"
};

/// Every tensor of the model, layer by layer. A tied head is not listed: it is the embedding.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

}  // namespace cmoe
