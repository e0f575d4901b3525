// Why a program ends: the lines on stderr that are no log.
#pragma once
#include <string>

namespace exfusion {

// Writes "program: line" for each line of `text` to stderr. Where EXFUSION_LAST_WORDS names a socket (the
// ranks of exfusion-train --nproc have one), hands it `text` instead: whoever reads there says once what
// several say.
void say_last_words(const std::string& program, const std::string& text);

// The same, always to stderr.
void print_last_words(const std::string& program, const std::string& text);

}  // namespace exfusion
