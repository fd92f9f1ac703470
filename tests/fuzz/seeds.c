/*
 * Under libFuzzer: with FUZZ_WRITE_SEEDS=DIR in the environment a harness writes its seeds to DIR
 * and is done, as with driver.c's --write-seeds.  scripts/fuzz starts a corpus this way.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define MAX_INPUT (1u << 20)

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *dir = getenv("FUZZ_WRITE_SEEDS");
    uint8_t *input = dir ? malloc(MAX_INPUT) : NULL;
    size_t len;

    if (!dir)
        return 0;
    for (unsigned n = 0; input && (len = fuzz_seed(n, input, MAX_INPUT)); n++) {
        char name[4096];
        FILE *f;

        snprintf(name, sizeof(name), "%s/seed-%u", dir, n);
        f = fopen(name, "wb");
        if (!f || fwrite(input, 1, len, f) != len || fclose(f)) {
            fprintf(stderr, "fuzz: cannot write %s: %s\n", name, strerror(errno));
            exit(2);
        }
    }
    exit(input ? 0 : 2);
}
