// recast_ref._C: importing it loads the library, which registers the ops; build_info() says how it was built.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#define RECAST_TEXT_(x) #x
#define RECAST_TEXT(x) RECAST_TEXT_(x)

PYBIND11_MODULE(_C, m) {
  m.doc() = "Loads the ops of the recast namespace.";
  m.def("build_info", [] {
    pybind11::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    info["flags"] = RECAST_FLAGS;
    info["cuda_architectures"] = RECAST_CUDA_ARCHITECTURES;
    info["torch"] = TORCH_VERSION;
    return info;
  }, "Compiler, flags, CUDA architectures and torch version this library was built with: a dict of strings.");
}
