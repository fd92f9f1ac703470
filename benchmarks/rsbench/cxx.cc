/*
 * rsbench-cxx: what C cannot show.  The same output as rsbench:
 *
 *     rsbench-cxx cxx-throw|cxx-virtual|cxx-map [SECONDS]
 */
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace
{

uint64_t rng_state;
uint64_t rng()
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state;
}

struct result {
    uint64_t ops, check;
};

struct failure {
    unsigned depth;
};

/* A destructor on the way forces a landing pad in each frame. */
struct guard {
    uint64_t &count;
    ~guard() { count++; }
};

__attribute__((noinline)) uint64_t dive(unsigned depth, uint64_t &count)
{
    guard g{count};
    if (!depth)
        throw failure{depth};
    return dive(depth - 1, count) + depth;
}

/* Exceptions through 1 to 8 frames with destructors. */
result bench_throw()
{
    enum { TIMES = 3000 };
    uint64_t count = 0, caught = 0;
    for (unsigned i = 0; i < TIMES; i++) {
        try {
            count += dive(i % 8, count);
        } catch (const failure &f) {
            caught += f.depth + 1;
        }
    }
    return {TIMES, count * 31 + caught};
}

struct shape {
    virtual ~shape() = default;
    virtual uint64_t area() const = 0;
};
struct square : shape {
    uint64_t a;
    explicit square(uint64_t v) : a(v) {}
    uint64_t area() const override { return a * a; }
};
struct rectangle : shape {
    uint64_t a, b;
    rectangle(uint64_t v, uint64_t w) : a(v), b(w) {}
    uint64_t area() const override { return a * b; }
};
struct triangle : shape {
    uint64_t a, b;
    triangle(uint64_t v, uint64_t w) : a(v), b(w) {}
    uint64_t area() const override { return a * b / 2; }
};

result bench_virtual()
{
    enum { COUNT = 1000, TIMES = 1000 };
    std::vector<std::unique_ptr<shape>> shapes;
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t a = rng() & 0xffff, b = rng() & 0xffff;
        switch (rng() % 3) {
        case 0:
            shapes.emplace_back(new square(a));
            break;
        case 1:
            shapes.emplace_back(new rectangle(a, b));
            break;
        default:
            shapes.emplace_back(new triangle(a, b));
            break;
        }
    }
    uint64_t check = 0;
    for (unsigned t = 0; t < TIMES; t++)
        for (const auto &s : shapes)
            check += s->area();
    return {static_cast<uint64_t>(COUNT) * TIMES, check};
}

/* Strings in a red-black tree, sorted vectors, many small allocations. */
result bench_map()
{
    enum { COUNT = 20000 };
    std::map<std::string, unsigned> words;
    for (unsigned i = 0; i < COUNT; i++) {
        char key[32];
        snprintf(key, sizeof(key), "key-%llu",
                 static_cast<unsigned long long>(rng() % (COUNT / 2)));
        words[key] += i;
    }
    std::vector<std::pair<unsigned, std::string>> order;
    for (const auto &w : words)
        order.emplace_back(w.second, w.first);
    std::sort(order.begin(), order.end());
    uint64_t check = order.size();
    for (size_t i = 0; i < order.size(); i += 17)
        check = check * 31 + order[i].first + static_cast<unsigned char>(order[i].second.back());
    return {COUNT, check};
}

const struct {
    const char *name;
    result (*fn)();
} benches[] = {{"cxx-throw", bench_throw}, {"cxx-virtual", bench_virtual}, {"cxx-map", bench_map}};

double now()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

} // namespace

int main(int argc, char **argv)
{
    double seconds = argc > 2 ? strtod(argv[2], nullptr) : 0.3;
    for (const auto &b : benches) {
        if (argc < 2 || strcmp(argv[1], b.name))
            continue;
        std::vector<double> rounds;
        uint64_t check = 0;
        double timed = 0;
        do {
            rng_state = 0x9e3779b97f4a7c15ull;
            double begin = now();
            result r = b.fn();
            double t = now() - begin;
            if (!rounds.empty() && r.check != check) {
                fprintf(stderr, "rsbench-cxx: %s: a round gave another result\n", b.name);
                return 3;
            }
            check = r.check;
            rounds.push_back(t / static_cast<double>(r.ops) * 1e9);
            timed += t;
        } while (timed < seconds);
        double first = rounds[0];
        std::sort(rounds.begin(), rounds.end());
        printf("RESULT %s %.3f %.3f %016llx %zu\n", b.name, rounds[rounds.size() / 2], first,
               static_cast<unsigned long long>(check), rounds.size());
        return 0;
    }
    fprintf(stderr, "rsbench-cxx: usage: rsbench-cxx cxx-throw|cxx-virtual|cxx-map [SECONDS]\n");
    return 1;
}
