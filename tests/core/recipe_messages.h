// What a recipe error says, for tests that compare it word by word.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/recipe.h"

namespace exfusion {

using Reader = std::function<void(Section root)>;
inline const Reader kReadNothing = [](Section) {};

// The problems of `text` (named r.yaml) when `read` is its schema; "" if there are none.
inline std::string problems(const std::string& text, const Reader& read,
                            const std::vector<std::string>& sets = {}) {
  try {
    Recipe recipe = Recipe::parse(text, "r.yaml", sets);
    read(recipe.root());
    recipe.finish();
  } catch (const RecipeError& error) {
    return error.what();
  }
  return "";
}

}  // namespace exfusion
