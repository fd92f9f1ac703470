/* What the compiler's benchmark compiles: a font rasteriser of 5000 lines, from libstb-dev. */
#define STB_TRUETYPE_IMPLEMENTATION
#include <stb_truetype.h>
