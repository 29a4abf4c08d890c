// masked_linear_ on CPU tensors, for ops that are made of it.
#pragma once

#include "tensors.h"

namespace corrigenda {

void masked_linear_(Tensor y, Tensor x, Tensor memory, Tensor masks, Tensor route);

}  // namespace corrigenda
