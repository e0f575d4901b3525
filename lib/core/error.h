// Every error that a program reports: one type per cause, thrown where the cause is known. The message is one
// line (RecipeError: one line per problem) that says where, what was found and what would be right; the
// programs turn it into a line on stderr and the exit code below.
#pragma once
#include <stdexcept>
#include <string>

namespace exfusion {

struct Error : std::runtime_error {
  Error(const std::string& message, int code) : std::runtime_error(message), exit_code(code) {}
  int exit_code;
};

// Bad input: exit code 2. Something the user gave has to change.
struct BadInput : Error {
  explicit BadInput(const std::string& message) : Error(message, 2) {}
};
struct UsageError : BadInput {
  using BadInput::BadInput;
};  // command line
struct RecipeError : BadInput {
  using BadInput::BadInput;
};  // recipe, one line per problem, each with file:line:column
struct DataError : BadInput {
  using BadInput::BadInput;
};  // data file: missing, damaged, or not what the recipe says
struct FormatError : BadInput {
  using BadInput::BadInput;
};  // safetensors, HDF5 or JSON file that is not well formed
struct CheckpointError : BadInput {
  using BadInput::BadInput;
};  // checkpoint or run folder that cannot be used
struct RunFolderError : BadInput {
  using BadInput::BadInput;
};  // a folder that exists and may not be overwritten

// A failed run: exit code 1. The input may be fine.
struct Failure : Error {
  explicit Failure(const std::string& message) : Error(message, 1) {}
};
struct FileError : Failure {
  using Failure::Failure;
};  // the system refused to read or write a file
struct NonFiniteError : Failure {
  using Failure::Failure;
};  // too many steps in a row with a non-finite loss or gradient
struct DistributedError : Failure {
  using Failure::Failure;
};  // a collective failed: a rank was lost, or the group could not be made
struct GraphError : Failure {
  using Failure::Failure;
};  // a trainable parameter on which the loss does not depend
struct VerificationError : Failure {
  using Failure::Failure;
};  // what was written does not read back as it should

// Stopped by a signal after saving: exit code 128 + signal.
struct Interrupted : Error {
  Interrupted(const std::string& message, int signal) : Error(message, 128 + signal) {}
};

}  // namespace exfusion
