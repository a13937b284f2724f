// A pole on a cart that is pushed left or right. Barto, Sutton and Anderson 1983, "Neuronlike adaptive
// elements that can solve difficult learning control problems"; constants as in Gymnasium's CartPole-v1.
#pragma once

#include <cmath>
#include <numbers>

#include "io/tasks/task.h"

namespace weft::rl {

struct Cart {
  double x = 0, speed = 0;     // m, m / s
  double angle = 0, turn = 0;  // of the pole from upright: rad, rad / s

  static constexpr double kTrack = 2.4;                             // the cart must stay within +-, m
  static constexpr double kLean = 12 * 2 * std::numbers::pi / 360;  // the pole must stay within +-, rad

  static Cart random(ExampleRandom& random) {
    const auto small = [&] { return 0.1 * random.uniform() - 0.05; };
    Cart cart;
    cart.x = small();
    cart.speed = small();
    cart.angle = small();
    cart.turn = small();
    return cart;
  }

  // One Euler step of 20 ms with a push of 10 N to the right or to the left.
  void push(bool right) {
    constexpr double kGravity = 9.8, kCart = 1.0, kPole = 0.1, kTotal = kCart + kPole, kHalf = 0.5;
    constexpr double kForce = 10, kTime = 0.02;
    const double force = right ? kForce : -kForce, sine = std::sin(angle), cosine = std::cos(angle);
    const double pull = (force + kPole * kHalf * turn * turn * sine) / kTotal;
    const double spin =
        (kGravity * sine - cosine * pull) / (kHalf * (4.0 / 3.0 - kPole * cosine * cosine / kTotal));
    const double acceleration = pull - kPole * kHalf * spin * cosine / kTotal;
    x += kTime * speed;
    speed += kTime * acceleration;
    angle += kTime * turn;
    turn += kTime * spin;
  }

  bool fallen() const { return std::abs(x) > kTrack || std::abs(angle) > kLean; }
};

}  // namespace weft::rl
