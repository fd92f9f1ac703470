/*
 * Fuzz harnesses.  Each tests/fuzz/fuzz_NAME.c is a program: with libFuzzer where the build asks
 * for it (-DRINGSHIFT_LIBFUZZER=ON, clang), else with driver.c, whose mutator is simple and
 * repeatable.  docs/testing.md says how to run one for hours.
 */
#ifndef RINGSHIFT_TESTS_FUZZ_H
#define RINGSHIFT_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* The harness: must return 0 whatever the bytes are. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Well-formed inputs to start from: writes number `index` (0, 1, ...) to out and returns its
 * length, or 0 if there are no more. */
size_t fuzz_seed(unsigned index, uint8_t *out, size_t max);

#endif
