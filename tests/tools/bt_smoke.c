/* Runs a raw binary of 64-bit code in the translator and prints the registers at HLT. */
#include "tests/support/bt_fixture.h"

void vcpu_raise(struct vcpu *v, uint32_t events) __attribute__((weak));
void vcpu_raise(struct vcpu *v, uint32_t events)
{
    v->events |= events;
}

int main(int argc, char **argv)
{
    static uint8_t buf[65536];
    struct bt_fixture f;
    FILE *in = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!in) {
        fprintf(stderr, "usage: bt_smoke FILE\n");
        return 2;
    }
    size_t n = fread(buf, 1, sizeof buf, in);
    fclose(in);
    struct engine_config cfg = {0};
    fx_create(&f, &cfg);
    fx_write(&f, FX_CODE, buf, n);
    int r = fx_run(&f);
    printf("result %d rip %#llx rflags %#llx %s\n", r, (unsigned long long)f.v->rip,
           (unsigned long long)f.v->rflags, f.v->exit_reason);
    for (int i = 0; i < 16; i++)
        printf("r%d=%#llx%c", i, (unsigned long long)f.v->gpr[i], i % 4 == 3 ? '\n' : ' ');
    f.engine->ops->print_stats(f.engine, stdout);
    fx_destroy(&f);
    return 0;
}
