// What taking experts out does to held-out loss and accuracy, with intervals from batches resampled; and how
// well scores foretell it. Observation does not show importance, intervention does (arXiv 2606.10703).
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "analysis/bootstrap.h"

namespace exfusion::analysis {

// Sums over the images of each batch and class, [B, C]: of a model, or of what an intervention changes (with
// it less without, image by image). Empty: the intervention is not possible; such experts are left out below.
struct ImageSums {
  std::vector<double> loss, correct;
};

// The held-out images, and what the model makes of them as it is.
struct HeldOutImages {
  std::size_t batches = 0, classes = 0;
  std::vector<double> images;  // [B, C]
  ImageSums model;
};

// Means over images.
struct MeanChange {
  double loss = 0.0, accuracy = 0.0;
  Interval loss_ci, accuracy_ci;
  std::vector<double> loss_by_class, accuracy_by_class;  // [C]; NaN for a class without images
};
MeanChange mean_change(const HeldOutImages& held_out, const ImageSums& change);

// Mean change of loss per image, each batch counted `times` ([B]).
double mean_loss(const HeldOutImages& held_out, const ImageSums& change, const std::vector<double>& times);

// Named after the paradox of Braess (1968): the experts without which the model does better. Experts that do
// nothing count as such, as they lower nothing.
struct BraessShare {
  double share = 0.0;         // of experts whose removal lowers the loss
  Interval share_ci;          // the same images with and without, batches resampled
  std::size_t certain = 0;    // experts whose interval of the change lies below 0
  std::vector<double> drawn;  // [kResamples] shares; empty where there is no interval
};
BraessShare braess_share(const HeldOutImages& held_out, const std::vector<ImageSums>& left_out);

// Whether taking an expert out hurts its preferred classes (those that come to it more often than images in
// general do) more than the others: mean over experts of (loss increase on preferred classes - on the
// others). p: part of the draws in which experts swap their preferences and show at least as much, so that
// neither hard classes nor strong experts make it small. Its least value is about 1/N!, N experts.
struct InteractionContrast {
  Quantity contrast, p;
  std::vector<double> drawn;  // [kPermutations] contrasts
};
inline constexpr std::uint32_t kPermutations = 999;
// preference [C, N]: how often (tokens, or a share) an image of the class comes to the expert, >= 0.
InteractionContrast interaction_contrast(const HeldOutImages& held_out,
                                         const std::vector<ImageSums>& left_out,
                                         std::span<const double> preference, std::uint32_t layer);
// Of the means over layers; draws of layers are independent.
InteractionContrast mean_contrast(const std::vector<InteractionContrast>& layers);

// Spearman's rank correlation, ties share their mean rank. NaN if one of them does not vary.
double spearman(std::span<const double> a, std::span<const double> b);

// Of a score and the loss that taking each expert out costs, over the experts of a layer. Scores are those of
// the even batches (a function of how often each batch counts, [B], to [scores][N]; scores of the weights
// alone ignore it), losses those of the odd ones: no image is in both.
struct RankCorrelation {
  Quantity rho;
  Interval ci;
  std::vector<double> drawn;  // [kResamples], NaN where undefined; empty where there is no interval
};
using ScoresOfBatches = std::function<std::vector<std::vector<double>>(const std::vector<double>& times)>;
std::vector<RankCorrelation> rank_correlations(const HeldOutImages& held_out,
                                               const std::vector<ImageSums>& left_out,
                                               const ScoresOfBatches& scores);
// The mean over the layers in which it is defined.
RankCorrelation mean_correlation(const std::vector<RankCorrelation>& layers, std::size_t batches);

}  // namespace exfusion::analysis
