// A team of OpenMP threads that walk a segment together.

#pragma once

#include <omp.h>

#include <utility>

#include "numbers.h"

namespace {

struct Team {
    int thread, size;  // the number of this thread, and how many there are

    // Waits until all threads are here.
    void barrier() const {
#pragma omp barrier
    }

    // This thread's share of `count` items: the first, and one past the last.
    std::pair<Index, Index> share(Index count) const { return {count * thread / size, count * (thread + 1) / size}; }
};

// Runs `step` in every thread of a team.
template <class Step> void in_team(Index threads, Step step) {
#pragma omp parallel num_threads(int(threads))
    step(Team{omp_get_thread_num(), omp_get_num_threads()});
}

}  // namespace
