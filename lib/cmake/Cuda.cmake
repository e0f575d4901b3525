# The CUDA language for our .cu files, and the CUDA build of libtorch for everything: -DEXFUSION_CUDA=ON.
#
# The compiler is CMAKE_CUDA_COMPILER, else the nvcc that lies beside the torch wheel in its Python environment (packages of
# cuda-toolkit[nvcc]), else the one on the PATH. The runtime is the wheel's own libcudart: a second one would not see the
# streams and the memory of the first.

if(NOT EXISTS "${Libtorch_ROOT_DIR}/lib/libtorch_cuda.so")
  message(FATAL_ERROR "EXFUSION_CUDA=ON needs a CUDA build of libtorch, and ${Libtorch_VERSION_FULL} in ${Libtorch_ROOT_DIR} "
    "is none: ./dev build cuda installs one")
endif()

file(GLOB _beside "${Libtorch_ROOT_DIR}/../nvidia/cu13")  # of the wheels of CUDA 13; empty if there are none
find_program(CMAKE_CUDA_COMPILER nvcc HINTS "${_beside}/bin")
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "EXFUSION_CUDA=ON needs nvcc of the CUDA release of libtorch ${Libtorch_VERSION_FULL}: "
    "./dev build cuda installs it, or give -DCMAKE_CUDA_COMPILER")
endif()
find_library(EXFUSION_CUDART NAMES libcudart.so.13 libcudart.so HINTS "${_beside}/lib" PATHS /usr/local/cuda/lib64)
if(NOT EXFUSION_CUDART)
  message(FATAL_ERROR "EXFUSION_CUDA=ON needs libcudart.so: give -DEXFUSION_CUDART=<file>")
endif()

# The headers of NCCL, beside libtorch's, and those of CUDA that they include: for lib/dist/nccl.cpp.
find_path(EXFUSION_NCCL_INCLUDE nccl.h HINTS "${_beside}/../nccl/include")
find_path(EXFUSION_CUDA_INCLUDE cuda_runtime_api.h HINTS "${_beside}/include" PATHS /usr/local/cuda/include)
if(NOT EXFUSION_NCCL_INCLUDE OR NOT EXFUSION_CUDA_INCLUDE)
  message(FATAL_ERROR "EXFUSION_CUDA=ON needs nccl.h and cuda_runtime_api.h: give -DEXFUSION_NCCL_INCLUDE=<folder> "
    "and -DEXFUSION_CUDA_INCLUDE=<folder>")
endif()

# Machine code for A100; RTX 30 and 40; H100 and H200; B200 and B300; RTX 50. What comes later compiles the last one's PTX at start.
set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 90-real 100-real 120 CACHE STRING "GPU architectures")
set(ENV{NVCC_APPEND_FLAGS} "$ENV{NVCC_APPEND_FLAGS} -L${_beside}/lib")  # nvcc's own trial link looks in lib64 only
enable_language(CUDA)
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
# CMake before 3.25.2 does not know that nvcc takes C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")

# As on the CPU: no contraction into fused multiply-adds, division and square root rounded as IEEE 754 says.
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false;--Werror=all-warnings;-Xcompiler=-Wall,-Wextra>")

foreach(_name IN ITEMS c10_cuda torch_cuda)
  add_library(Libtorch::lib_${_name} SHARED IMPORTED)
  set_target_properties(Libtorch::lib_${_name} PROPERTIES
    IMPORTED_LOCATION "${Libtorch_ROOT_DIR}/lib/lib${_name}.so" IMPORTED_SONAME "lib${_name}.so")
endforeach()
# libtorch_cuda registers its operators when it is loaded: it is needed though we use no symbol of it.
target_link_libraries(Libtorch::torch INTERFACE
  -Wl,--no-as-needed Libtorch::lib_torch_cuda Libtorch::lib_c10_cuda -Wl,--as-needed "${EXFUSION_CUDART}")
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")
