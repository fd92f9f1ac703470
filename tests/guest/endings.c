/*
 * Tests that end the machine: not part of the normal run, each is asked for by name and judged by
 * the runner from outside.
 */
#include "guest.h"

TEST(end, triple_fault)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) none = {0, 0};
    asm volatile("lidt %0\n\tud2" ::"m"(none));
}

TEST(end, i8042_reset)
{
    outb(0x64, 0xfe);
    for (;;)
        asm volatile("pause");
}

TEST(end, cf9_reset)
{
    outb(0xcf9, 2);
    outb(0xcf9, 6);
    for (;;)
        asm volatile("pause");
}
