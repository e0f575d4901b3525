# The libtorch inside a PyPI wheel (or a libtorch archive) as imported targets, without find_package(Torch): that one wants a
# CUDA toolkit beside a CUDA wheel and MKL and protobuf targets beside any.
#
# LIBTORCH_ROOT (cache or environment) is a torch folder or a virtual environment that holds one; without it, the python of
# $VIRTUAL_ENV, then the repository's .venv, then python3 are asked where their torch lies (torch itself is not imported).
#
# Targets:   Libtorch::torch
# Variables: Libtorch_ROOT_DIR, Libtorch_VERSION (2.13.0), Libtorch_VERSION_FULL (2.13.0+cpu)

set(LIBTORCH_ROOT "" CACHE PATH "a torch folder, or a virtual environment that holds one")

function(_libtorch_from_folder folder result)
  set(${result} "" PARENT_SCOPE)
  file(GLOB _candidates "${folder}" "${folder}/lib/python3*/site-packages/torch")
  foreach(_candidate IN LISTS _candidates)
    if(EXISTS "${_candidate}/lib/libtorch_cpu.so")
      set(${result} "${_candidate}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

function(_libtorch_from_python python result)
  execute_process(
    COMMAND "${python}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE _folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE _code)
  if(_code EQUAL 0)
    set(${result} "${_folder}" PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()

set(_given "${LIBTORCH_ROOT}")
if(NOT _given)
  set(_given "$ENV{LIBTORCH_ROOT}")
endif()
set(Libtorch_ROOT_DIR "")
if(_given)
  _libtorch_from_folder("${_given}" Libtorch_ROOT_DIR)
else()
  foreach(_python IN ITEMS "$ENV{VIRTUAL_ENV}/bin/python" "${CMAKE_SOURCE_DIR}/.venv/bin/python" python3)
    _libtorch_from_python("${_python}" Libtorch_ROOT_DIR)
    if(Libtorch_ROOT_DIR)
      break()
    endif()
  endforeach()
endif()

# A wheel has version.py, a libtorch archive a file build-version.
if(EXISTS "${Libtorch_ROOT_DIR}/version.py")
  file(STRINGS "${Libtorch_ROOT_DIR}/version.py" _line REGEX "^__version__")
  string(REGEX MATCH "'([^']+)'" _ "${_line}")
  set(Libtorch_VERSION_FULL "${CMAKE_MATCH_1}")
elseif(EXISTS "${Libtorch_ROOT_DIR}/build-version")
  file(STRINGS "${Libtorch_ROOT_DIR}/build-version" Libtorch_VERSION_FULL LIMIT_COUNT 1)
endif()
string(REGEX MATCH "^[0-9.]+" Libtorch_VERSION "${Libtorch_VERSION_FULL}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Libtorch
  REQUIRED_VARS Libtorch_ROOT_DIR Libtorch_VERSION VERSION_VAR Libtorch_VERSION
  REASON_FAILURE_MESSAGE
    "no libtorch of 2.13 to 2.14: run ./dev setup, or give -DLIBTORCH_ROOT=<a virtual environment or torch folder>")
if(Libtorch_VERSION VERSION_GREATER_EQUAL 2.15)
  message(WARNING "libtorch ${Libtorch_VERSION_FULL} is newer than what exfusion is tested with (2.13 to 2.14)")
endif()

if(NOT TARGET Libtorch::torch)
  # The wheel carries headers of a newer fmt than Debian's spdlog was built with. Whoever comes first wins, so the system's
  # fmt is put first; torch's headers compile with either.
  find_path(Libtorch_FMT fmt/core.h PATHS /usr/include NO_DEFAULT_PATH)
  set(_fmt_first "")
  if(Libtorch_FMT)
    set(_fmt_first "${CMAKE_BINARY_DIR}/fmt-first")
    file(MAKE_DIRECTORY "${_fmt_first}")
    file(CREATE_LINK "${Libtorch_FMT}/fmt" "${_fmt_first}/fmt" SYMBOLIC)
  endif()

  foreach(_name IN ITEMS c10 torch_cpu torch)
    add_library(Libtorch::lib_${_name} SHARED IMPORTED)
    set_target_properties(Libtorch::lib_${_name} PROPERTIES
      IMPORTED_LOCATION "${Libtorch_ROOT_DIR}/lib/lib${_name}.so" IMPORTED_SONAME "lib${_name}.so")
  endforeach()
  # The wheel brings its own OpenMP runtime: linking that very file keeps the process at one.
  file(GLOB _openmp "${Libtorch_ROOT_DIR}/lib/libgomp*.so*")
  if(NOT _openmp)
    set(_openmp gomp)
  endif()

  add_library(Libtorch::torch INTERFACE IMPORTED)
  target_include_directories(Libtorch::torch SYSTEM INTERFACE
    ${_fmt_first} "${Libtorch_ROOT_DIR}/include" "${Libtorch_ROOT_DIR}/include/torch/csrc/api/include")
  target_compile_definitions(Libtorch::torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
  # at::parallel_for is an inline OpenMP loop: without -fopenmp in our own files it would run on one thread.
  target_compile_options(Libtorch::torch INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  target_link_libraries(Libtorch::torch INTERFACE
    Libtorch::lib_torch Libtorch::lib_torch_cpu Libtorch::lib_c10 ${_openmp})
endif()
