// Reading a `fusion` section in the tests of this layer.
#pragma once
#include <string>

#include "core/error.h"
#include "core/recipe.h"
#include "fusion/fusion_config.h"

namespace exfusion {

inline FusionConfig parse(const std::string& text) {
  Recipe recipe = Recipe::parse(text, "test.yaml");
  const FusionConfig config = FusionConfig::parse(recipe.root());
  recipe.finish();
  return config;
}

inline std::string problem_of(const std::string& text) {
  try {
    parse(text);
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

}  // namespace exfusion
