// CUDA as nvcc has it; emulation/language.cuh has as much of it as the kernels use.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
