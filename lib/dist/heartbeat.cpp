#include "dist/heartbeat.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.h"
#include "core/median.h"

namespace exfusion {
namespace {

constexpr double kNewest = 0.1;  // the weight of the newest step in the average of a phase's seconds

double seconds(Activity::Clock::duration span) {
  return std::chrono::duration<double>(span).count();
}

}  // namespace

std::string Heartbeat::text() const {
  return nlohmann::json{{"host", host},       {"pid", pid},         {"phase", phase},
                        {"step", step},       {"beat", beat},       {"collective", collective},
                        {"waiting", waiting}, {"seconds", seconds}, {"state", static_cast<int>(state)}}
      .dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

Heartbeat Heartbeat::parse(const std::string& text) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    Heartbeat heart;
    json.at("host").get_to(heart.host);
    json.at("pid").get_to(heart.pid);
    json.at("phase").get_to(heart.phase);
    json.at("step").get_to(heart.step);
    json.at("beat").get_to(heart.beat);
    json.at("collective").get_to(heart.collective);
    json.at("waiting").get_to(heart.waiting);
    json.at("seconds").get_to(heart.seconds);
    const int state = json.at("state").get<int>();
    if (state < 0 || state > static_cast<int>(RankState::finished))
      throw DistributedError(fmt::format("store: a heartbeat with state {}", state));
    heart.state = static_cast<RankState>(state);
    return heart;
  } catch (const nlohmann::json::exception& error) {
    throw DistributedError(fmt::format("store: '{}' is no heartbeat: {}", text.substr(0, 80), error.what()));
  }
}

void Activity::at(const std::string& phase, std::int64_t step, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  current_[phase_] += seconds(now - since_);
  since_ = now;
  phase_ = phase;
  if (step == step_) return;
  step_ = step;
  for (const auto& [name, spent] : std::exchange(current_, {})) {
    const auto [average, first] = seconds_.try_emplace(name, spent);
    if (!first) average->second += kNewest * (spent - average->second);
  }
}

void Activity::waiting(const std::string& collective, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  waiting_ = true;
  between_two_ = collective == "send" || collective == "receive";
  waits_since_ = now;
}

void Activity::done(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  waiting_ = false;
  if (!between_two_) ++collective_;
  since_ += now - waits_since_;
}

void Activity::write(Heartbeat& heart) const {
  const std::lock_guard lock(mutex_);
  heart.phase = phase_;
  heart.step = step_;
  heart.collective = collective_;
  heart.waiting = waiting_;
  heart.seconds = seconds_;
}

std::optional<std::string> slow_rank(const std::vector<Heartbeat>& hearts) {
  std::optional<std::string> warning;
  double worst = 0.02;
  for (std::size_t rank = 0; rank < hearts.size(); ++rank) {
    for (const auto& [phase, spent] : hearts[rank].seconds) {
      std::vector<double> others;
      for (std::size_t other = 0; other < hearts.size(); ++other) {
        const auto& of_other = hearts[other].seconds;
        if (const auto found = of_other.find(phase); other != rank && found != of_other.end())
          others.push_back(found->second);
      }
      if (others.empty()) continue;
      const double usual = median(std::move(others));
      if (spent < 2.0 * usual || spent - usual < worst) continue;
      worst = spent - usual;
      warning = fmt::format("rank {} is slow: its {} takes {:.1f} x the median of the other ranks", rank,
                            phase, spent / std::max(usual, 1e-6));
    }
  }
  return warning;
}

}  // namespace exfusion
