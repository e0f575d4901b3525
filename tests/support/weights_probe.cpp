// weights_probe MODEL_YAML IN.safetensors OUT.safetensors [SKIP]...
//
// Loads IN into the model that MODEL_YAML (a recipe with a `model` section) describes, as init_from does,
// writes its tensors to OUT and the report to stdout; for the comparison with timm
// (tests/python/test_upcycle.py).
#include <iostream>

#include "core/error.h"
#include "core/recipe.h"
#include "models/dense_weights.h"

int main(int argc, char** argv) {
  using namespace exfusion;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 3) {
    std::cerr << "see the head of weights_probe.cpp\n";
    return 2;
  }
  try {
    Recipe recipe = Recipe::load(arguments[0], {});
    const ModelConfig config = ModelConfig::parse(recipe.root().child("model"));
    recipe.finish();
    const std::shared_ptr<Model> model = make_model(config, 1);
    const std::vector<std::string> skip(arguments.begin() + 3, arguments.end());
    for (const std::string& line : load_dense_weights(*model, arguments[1], skip).lines())
      std::cout << line << "\n";
    write_safetensors(arguments[2], model_tensors(*model));
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return error.exit_code;
  }
  return 0;
}
