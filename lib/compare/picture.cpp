#include "compare/picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace exfusion {
namespace {

constexpr double kRow = 30.0, kTop = 64.0, kPanel = 330.0, kNames = 150.0, kGap = 50.0, kBottom = 44.0;
constexpr const char *kCandidateColor = "#1f6fb4", *kControlColor = "#777777", *kInk = "#222222",
                     *kGrid = "#dddddd";

// One panel's scale: percent or points to pixels, with ticks at round numbers.
struct Axis {
  double low, high, left, step;
  double x(double value) const { return left + kPanel * (value - low) / (high - low); }
};

Axis make_axis(double low, double high, double left) {
  const double margin = std::max(0.05 * (high - low), 0.01);
  low -= margin;
  high += margin;
  const double rough = (high - low) / 5.0, power = std::pow(10.0, std::floor(std::log10(rough)));
  const double step = power * (rough / power < 1.5   ? 1.0
                               : rough / power < 3.5 ? 2.0
                               : rough / power < 7.5 ? 5.0
                                                     : 10.0);
  return {low, high, left, step};
}

std::string line(double x1, double y1, double x2, double y2, const char* color, double width) {
  return fmt::format(
      "<line x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}' stroke='{}' stroke-width='{}'/>\n", x1, y1, x2,
      y2, color, width);
}

std::string text_at(double x, double y, const char* anchor, const std::string& words, int size = 12) {
  return fmt::format("<text x='{:.1f}' y='{:.1f}' text-anchor='{}' font-size='{}' fill='{}'>{}</text>\n", x,
                     y, anchor, size, kInk, xml_escaped(words));
}

std::string axis_svg(const Axis& axis, double bottom, const std::string& title, bool sign) {
  std::string svg = text_at(axis.left + kPanel / 2, kTop - 18, "middle", title);
  const int digits = std::max(0, static_cast<int>(-std::floor(std::log10(axis.step) + 1e-9)));
  for (double tick = std::ceil(axis.low / axis.step) * axis.step; tick <= axis.high; tick += axis.step) {
    const double value = std::abs(tick) < 1e-9 * axis.step ? 0.0 : tick;
    svg += line(axis.x(value), kTop - 8, axis.x(value), bottom, kGrid, 1);
    svg += text_at(
        axis.x(value), bottom + 16, "middle",
        sign && value != 0.0 ? fmt::format("{:+.{}f}", value, digits) : fmt::format("{:.{}f}", value, digits),
        11);
  }
  return svg;
}

std::vector<const ArmSummary*> shown_arms(const StageSummary& stage) {
  std::vector<const ArmSummary*> shown;
  for (const ArmSummary& arm : stage.arms) {
    if (!arm.of.runs.empty() && !arm.of.identical_to_dense && arm.complete) shown.push_back(&arm);
  }
  return shown;
}

std::string row_svg(const ArmSummary& arm, double y, const Axis& accuracy, const Axis& difference) {
  const char* color = arm.of.arm.control ? kControlColor : kCandidateColor;
  std::string svg = text_at(kNames - 10, y + 4, "end", arm.of.arm.name);
  for (const auto& run : arm.of.runs)
    svg += fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='3.5' fill='{}' fill-opacity='0.55'/>\n",
                       accuracy.x(100.0 * run->accuracy), y, color);
  svg += line(accuracy.x(100.0 * arm.mean), y - 9, accuracy.x(100.0 * arm.mean), y + 9, kInk, 2);
  if (!arm.difference) return svg;
  const Interval& interval = arm.difference->interval;
  svg += line(difference.x(100.0 * interval.low), y, difference.x(100.0 * interval.high), y, color, 3);
  svg += fmt::format("<circle cx='{:.1f}' cy='{:.1f}' r='4.5' fill='{}'/>\n",
                     difference.x(100.0 * arm.difference->mean), y, color);
  return svg;
}

}  // namespace

std::string comparison_svg(const StageSummary& stage, const std::string& title) {
  const std::vector<const ArmSummary*> arms = shown_arms(stage);
  std::vector<double> accuracies, differences = {0.0};
  for (const ArmSummary* arm : arms) {
    for (const auto& run : arm->of.runs) accuracies.push_back(100.0 * run->accuracy);
    if (!arm->difference) continue;
    differences.push_back(100.0 * arm->difference->interval.low);
    differences.push_back(100.0 * arm->difference->interval.high);
  }
  if (accuracies.empty()) accuracies = {0.0, 100.0};
  const auto [worst, best] = std::ranges::minmax(accuracies);
  const auto [lowest, highest] = std::ranges::minmax(differences);
  const Axis accuracy = make_axis(worst, best, kNames);
  const Axis difference = make_axis(lowest, highest, kNames + kPanel + kGap);
  const double bottom = kTop + kRow * static_cast<double>(arms.size());
  const double width = kNames + 2 * kPanel + kGap + 30, height = bottom + kBottom;
  std::string svg = fmt::format(
      "<svg xmlns='http://www.w3.org/2000/svg' width='{0:.0f}' height='{1:.0f}' viewBox='0 0 {0:.0f} "
      "{1:.0f}' "
      "font-family='sans-serif'>\n<title>{2}</title>\n<rect width='100%' height='100%' fill='white'/>\n",
      width, height, xml_escaped(title));
  svg += text_at(width / 2, 22, "middle", title, 14);
  svg += axis_svg(accuracy, bottom, "test accuracy, %: seeds and mean", false);
  svg += axis_svg(difference, bottom, "minus dense, points: mean and 95 % interval", true);
  svg += line(difference.x(0.0), kTop - 8, difference.x(0.0), bottom, kInk, 1.5);
  for (std::size_t i = 0; i < arms.size(); ++i)
    svg += row_svg(*arms[i], kTop + kRow * (static_cast<double>(i) + 0.5), accuracy, difference);
  svg += text_at(kNames, bottom + 36, "start", "blue: arms, grey: controls", 11);
  return svg + "</svg>\n";
}

std::string xml_escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&apos;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return escaped;
}

}  // namespace exfusion
