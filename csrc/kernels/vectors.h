// The vector kernels of the active ISA.
#pragma once

#include <string_view>

#include "kernels/vector_kernels.h"

namespace gossamer {

const VectorKernels& vector_kernels();
const KvKernels& kv_kernels(KvType type);
const char* kv_name(KvType type);

// The entry of that name in a table that ends with one that has none; null where it has no such.
template <class Kernel>
const Kernel* named(const Kernel* table, std::string_view name) {
  while (table->name != nullptr && table->name != name) ++table;
  return table->name == nullptr ? nullptr : table;
}

}  // namespace gossamer
