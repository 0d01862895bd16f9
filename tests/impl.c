#define SVG2_IMPLEMENTATION
#include "../svg2.h"
