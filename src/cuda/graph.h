// CUDA graphs as C functions, see CudaTable; torch's allocator keeps their memory apart.
#pragma once

namespace weft {

const char* record_graph(int device, bool (*body)(void*), void* context, void** graph);
const char* replay_graph(void* graph);
void drop_graph(void* graph);

}  // namespace weft
