/* Clips: PSNR and SSIM against their formulas; y4m, contact sheet and animation are read again with other readers.
   SVG2_TOOL_NO_PNG, SVG2_TOOL_NO_GIF: built without libpng, giflib; their tests are skipped. */
#define _XOPEN_SOURCE 700
#include "../examples/y4m.h" /* before clip.h, and that before test.h: they use names of types as names of variables */
#include "../examples/wan/clip.h"

#include "test.h"

#include <unistd.h>

/* ---- clips -------------------------------------------------------------------------------- */
static clip clip_new(int frames, int height, int width)
{
    clip c;
    c.frames = frames; c.height = height; c.width = width;
    c.rgb = (float *)mem_new(sizeof(float) * (size_t)(frames * height * width * 3));
    return c;
}
static size_t values(const clip *c) { return (size_t)c->frames * (size_t)c->height * (size_t)c->width * 3; }
static clip clip_of(int frames, int height, int width, double red, double green, double blue)
{
    clip c = clip_new(frames, height, width);
    for (size_t i = 0; i < values(&c); i += 3) c.rgb[i] = (float)red, c.rgb[i + 1] = (float)green, c.rgb[i + 2] = (float)blue;
    return c;
}
static clip clip_random(int frames, int height, int width, uint64_t seed)
{
    clip c = clip_new(frames, height, width);
    for (size_t i = 0; i < values(&c); ++i) c.rgb[i] = (float)rnd_unit(&seed);
    return c;
}
/* Few enough colours for a palette, all of them on bytes; a little of it moves. */
static clip clip_plain(int frames, int height, int width, uint64_t seed)
{
    clip c = clip_new(frames, height, width);
    float colors[20];
    for (int i = 0; i < COUNT(colors); ++i) colors[i] = (float)rnd_int(&seed, 256) / 255;
    for (int f = 0; f < frames; ++f)
        for (int y = 0; y < height; ++y)
            for (int x = 0; x < width; ++x) {
                int kind = (y * 3 + x * 5 + (x + y) / 3) % 12 + (y == f % height ? 5 : 0);
                for (int k = 0; k < 3; ++k) c.rgb[((f * height + y) * width + x) * 3 + k] = colors[kind + k];
            }
    return c;
}
/* All hues and shades, turning. */
FN clip clip_rainbow(int frames, int height, int width)
{
    clip c = clip_new(frames, height, width);
    for (int f = 0; f < frames; ++f)
        for (int y = 0; y < height; ++y)
            for (int x = 0; x < width; ++x)
                for (int k = 0; k < 3; ++k) {
                    double hue = (double)x / width + (double)f / frames, light = 2.0 * y / (height - 1);
                    double a = 0.5 + 0.5 * cos(6.283185307 * (hue - k / 3.0));
                    c.rgb[((f * height + y) * width + x) * 3 + k] = (float)(light < 1 ? a * light : a + (1 - a) * (light - 1));
                }
    return c;
}
static double clamped(float v) { return v > 0 ? fmin((double)v, 1) : 0; } /* NaN: 0 */

/* ---- numbers ------------------------------------------------------------------------------ */
static void test_psnr(void **state)
{
    (void)state;
    clip a = clip_of(2, 3, 5, 0.25, 0.5, 0.75), b = clip_of(2, 3, 5, 0.25, 0.5, 0.75);
    assert_true(isinf(clip_psnr(&a, &b)) && clip_psnr(&a, &b) > 0);
    for (size_t i = 0; i < values(&b); ++i) b.rgb[i] += 0.125f;
    assert_at_most(fabs(clip_psnr(&a, &b) - 18.061799739838872), 1e-12); /* 20 log10 8 */
    assert_true(clip_psnr(&a, &b) == clip_psnr(&b, &a));
    b = clip_of(2, 3, 5, 0.25, 0.5, 0.75);
    b.rgb[7] = 0.25f; /* one of 90 values, off by 1/4 */
    assert_at_most(fabs(clip_psnr(&a, &b) - 10 * log10(90 * 16.)), 1e-12);
    clip low = clip_of(1, 1, 1, -3, 7, NAN), ends = clip_of(1, 1, 1, 0, 1, 0), black = clip_of(1, 1, 1, -INFINITY, 0, -0.0);
    assert_true(isinf(clip_psnr(&low, &ends)));
    assert_at_most(fabs(clip_psnr(&black, &ends) - 10 * log10(3.)), 1e-12);
    clip other = clip_of(2, 5, 3, 0, 0, 0), none = a;
    none.rgb = 0;
    assert_true(isnan(clip_psnr(&a, &other)) && isnan(clip_psnr(&a, 0)) && isnan(clip_psnr(0, &a)) && isnan(clip_psnr(&a, &none)));
    none = a;
    none.frames = 0;
    assert_true(isnan(clip_psnr(&none, &none)));
}

/* The definition, window by window. */
static double ssim_direct(const clip *x, const clip *y)
{
    int h = x->height < 11 ? x->height : 11, w = x->width < 11 ? x->width : 11;
    double total = 0;
    int64_t windows = 0;
    for (int f = 0; f < x->frames; ++f)
        for (int i = 0; i + h <= x->height; ++i)
            for (int j = 0; j + w <= x->width; ++j, ++windows) {
                double sum = 0, mean[2] = {0, 0}, variance[2] = {0, 0}, covariance = 0;
                for (int pass = 0; pass < 2; ++pass) /* means first, then what is left */
                    for (int r = 0; r < h; ++r)
                        for (int c = 0; c < w; ++c) {
                            size_t at = (size_t)((f * x->height + i + r) * x->width + j + c) * 3;
                            double dr = r - (h - 1) / 2.0, dc = c - (w - 1) / 2.0, g = exp(-(dr * dr + dc * dc) / (2 * 1.5 * 1.5)), l[2];
                            for (int k = 0; k < 2; ++k) {
                                const float *p = (k ? y : x)->rgb + at;
                                l[k] = 0.299 * clamped(p[0]) + 0.587 * clamped(p[1]) + 0.114 * clamped(p[2]);
                            }
                            if (pass == 0) sum += g, mean[0] += g * l[0], mean[1] += g * l[1];
                            else {
                                double a = l[0] - mean[0] / sum, b = l[1] - mean[1] / sum;
                                variance[0] += g / sum * a * a, variance[1] += g / sum * b * b, covariance += g / sum * a * b;
                            }
                        }
                double a = mean[0] / sum, b = mean[1] / sum;
                total += (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a * a + b * b + 1e-4) * (variance[0] + variance[1] + 9e-4));
            }
    return total / (double)windows;
}

static void test_ssim(void **state)
{
    (void)state;
    static const int sizes[][3] = {{1, 11, 11}, {2, 16, 20}, {3, 31, 12}, {1, 7, 5}, {2, 4, 30}, {1, 30, 1}, {1, 1, 1}, {1, 10, 11}};
    for (int n = 0; n < COUNT(sizes); ++n) {
        clip a = clip_random(sizes[n][0], sizes[n][1], sizes[n][2], 5), b = clip_random(sizes[n][0], sizes[n][1], sizes[n][2], 6);
        assert_true(clip_ssim(&a, &a) == 1);
        for (int part = 0; part < 3; ++part) {
            for (size_t i = 0; i < values(&b); ++i) b.rgb[i] = a.rgb[i] + (b.rgb[i] - a.rgb[i]) * 0.5f; /* nearer and nearer */
            if (part == 1) b.rgb[0] = NAN, b.rgb[values(&b) - 1] = 3, a.rgb[1] = -1;
            assert_at_most(fabs(clip_ssim(&a, &b) - ssim_direct(&a, &b)), 1e-11);
            assert_true(clip_ssim(&a, &b) < 1 && fabs(clip_ssim(&a, &b) - clip_ssim(&b, &a)) < 1e-14);
        }
    }
    clip a = clip_of(1, 20, 20, 0.2, 0.2, 0.2), b = clip_of(1, 20, 20, 0.6, 0.6, 0.6); /* flat: luminance term only */
    assert_at_most(fabs(clip_ssim(&a, &b) - (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)), 1e-7);
    clip c = clip_of(1, 20, 21, 0, 0, 0);
    assert_true(isnan(clip_ssim(&a, &c)) && isnan(clip_ssim(0, &a)) && isnan(clip_ssim(&a, 0)));
}

/* ---- y4m ---------------------------------------------------------------------------------- */
static void test_y4m(void **state)
{
    (void)state;
    static const struct { double rgb[3]; int yuv[3]; } known[] = {
        {{1, 1, 1}, {235, 128, 128}}, {{0, 0, 0}, {16, 128, 128}}, {{1, 0, 0}, {81, 90, 240}}, {{0, 1, 0}, {145, 54, 34}},
        {{0, 0, 1}, {41, 240, 110}}, {{1, 1, 0}, {210, 16, 146}}, {{0.5, 0.5, 0.5}, {126, 128, 128}}, {{9, -4, (double)NAN}, {81, 90, 240}},
    };
    char path[] = "/tmp/svg2_clip_XXXXXX";
    int descriptor = mkstemp(path);
    assert_true(descriptor >= 0);
    FILE *f = fdopen(descriptor, "wb");
    clip c = clip_new(3, 3, COUNT(known));
    for (size_t i = 0; i < values(&c); ++i) c.rgb[i] = (float)known[(i / 3 + i / 3 / COUNT(known)) % COUNT(known)].rgb[i % 3]; /* a step more per line */
    assert_true(f && clip_write_y4m(f, &c, 16) == 1 && fclose(f) == 0);
    assert_true(y4m_is_clip(path));
    y4m_clip in;
    const char *wrong = y4m_open(&in, path);
    if (wrong) fail_msg("%s", wrong);
    assert_int_equal(in.width, COUNT(known));
    assert_int_equal(in.height, 3);
    assert_string_equal(in.rate, "16:1");
    assert_string_equal(in.chroma, "444");
    uint8_t *frame = (uint8_t *)mem_new(in.frame_bytes);
    assert_int_equal(in.frame_bytes, COUNT(known) * 9);
    for (int t = 0; t < 3; ++t) {
        assert_int_equal(y4m_read(&in, frame), 1);
        for (int i = 0; i < 3 * COUNT(known); ++i)
            for (int k = 0; k < 3; ++k) {
                int line = 3 * t + i / COUNT(known);
                assert_int_equal(frame[k * 3 * COUNT(known) + i], known[(i + t * 3 * COUNT(known) + line) % COUNT(known)].yuv[k]);
            }
    }
    assert_int_equal(y4m_read(&in, frame), 0);
    y4m_close(&in);
    remove(path);
}

/* ---- pictures ----------------------------------------------------------------------------- */
typedef struct picture { int width, height; uint8_t *rgb; } picture;

static const uint8_t *picture_at(const picture *p, int x, int y) { return p->rgb + ((size_t)y * (size_t)p->width + (size_t)x) * 3; }

FN int same_frame(const picture *p, int left, int top, const clip *c, int frame, int scale)
{
    for (int y = 0; y < c->height * scale; ++y)
        for (int x = 0; x < c->width * scale; ++x)
            for (int k = 0; k < 3; ++k) {
                float v = c->rgb[((frame * c->height + y / scale) * c->width + x / scale) * 3 + k];
                if (picture_at(p, left + x, top + y)[k] != (uint8_t)(255 * clamped(v) + 0.5)) return 0;
            }
    return 1;
}
/* Where a frame is, exactly once. */
FN void find_frame(const picture *p, const clip *c, int frame, int scale, int *left, int *top)
{
    int found = 0;
    for (int y = 0; y + c->height * scale <= p->height; ++y)
        for (int x = 0; x + c->width * scale <= p->width; ++x)
            if (same_frame(p, x, y, c, frame, scale)) ++found, *left = x, *top = y;
    if (found != 1) fail_msg("frame %d is there %d times", frame, found);
}
/* Pixels that are not white. */
FN int count_ink(const picture *p, int x0, int y0, int x1, int y1)
{
    int count = 0;
    for (int y = y0; y < y1; ++y)
        for (int x = x0; x < x1; ++x) count += picture_at(p, x, y)[1] < 200;
    return count;
}

#ifdef SVG2_TOOL_NO_PNG
static void test_sheet(void **state) { (void)state; skip(); }
#else
static picture sheet(const clip *clips, const char *const *labels, int count, int columns, int scale)
{
    png_image image;
    picture p;
    FILE *f = tmpfile();
    assert_true(f && clip_write_sheet(f, clips, labels, count, columns, scale) == 1);
    rewind(f);
    memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    assert_true(png_image_begin_read_from_stdio(&image, f));
    image.format = PNG_FORMAT_RGB;
    p.width = (int)image.width;
    p.height = (int)image.height;
    p.rgb = (uint8_t *)mem_new((size_t)p.width * (size_t)p.height * 3);
    assert_true(png_image_finish_read(&image, 0, p.rgb, 0, 0));
    fclose(f);
    return p;
}
static void test_sheet(void **state)
{
    (void)state;
    static const char *const labels[3] = {"dense", "a label of many words, in several lines\nand small print", "sparse"};
    static const int cases[][5] = {{6, 9, 7, 4, 3}, {5, 8, 12, 3, 1}, {2, 30, 40, 2, 4}, {3, 6, 5, 9, 2}, {1, 1, 1, 1, 1}, {81, 4, 4, 6, 5}};
    for (int n = 0; n < COUNT(cases); ++n) {
        int frames = cases[n][0], h = cases[n][1], w = cases[n][2], columns = cases[n][3], scale = cases[n][4];
        int shown = columns < frames ? columns : frames, x[3][9], y[3][9];
        clip c[3] = {clip_random(frames, h, w, 1), clip_random(frames, h, w, 2), clip_random(frames, h, w, 3)};
        picture p = sheet(c, labels, 3, columns, scale), bare = sheet(c, 0, 3, columns, scale);
        for (int i = 0; i < 3; ++i)
            for (int k = 0; k < shown; ++k) {
                int frame = shown == 1 ? 0 : (int)floor(k * (frames - 1.0) / (shown - 1) + 0.499);
                find_frame(&p, &c[i], frame, scale, &x[i][k], &y[i][k]);
                assert_true(x[i][k] == x[0][k] && y[i][k] == y[i][0]); /* a grid */
                if (k) assert_in_range(x[i][k] - x[i][k - 1] - w * scale, 2, 12);
                if (k > 1) assert_int_equal(x[i][k] - x[i][k - 1], x[i][1] - x[i][0]);
                if (i) assert_true(y[i][k] - y[i - 1][k] - h * scale >= 2);
                if (i > 1) assert_int_equal(y[i][k] - y[i - 1][k], y[1][k] - y[0][k]);
                assert_true(count_ink(&p, x[i][k], 0, x[i][k] + 8, y[0][0] - 1) > 0); /* its number */
            }
        int pitch = y[1][0] - y[0][0];
        for (int i = 0; i < 3; ++i) assert_true(count_ink(&p, 0, y[i][0] + (h * scale - pitch) / 2, x[0][0] - 2, y[i][0] + (h * scale + pitch) / 2) > 20);
        assert_int_equal(count_ink(&p, 0, 0, p.width, 8) + count_ink(&p, 0, 0, 8, p.height), 0); /* margins */
        assert_int_equal(count_ink(&p, 0, p.height - 8, p.width, p.height) + count_ink(&p, p.width - 8, 0, p.width, p.height), 0);
        assert_true(bare.width < p.width - 20);
        mem_done();
    }
    clip white = clip_of(1, 8, 8, 1, 1, 1); /* its edge is seen */
    picture p = sheet(&white, 0, 1, 1, 2);
    int edge = 0;
    for (int i = 0; i < p.width * p.height; ++i) edge += p.rgb[3 * i] < 240 && p.rgb[3 * i] > 200;
    assert_true(edge >= 4 * 16 && edge < 4 * 20 + 30);
}
#endif

#ifdef SVG2_TOOL_NO_GIF
static void test_gif(void **state) { (void)state; skip(); }
static void test_gif_colors(void **state) { (void)state; skip(); }
static void test_gif_time(void **state) { (void)state; skip(); }
#else
typedef struct movie { int count, delay[128], is_endless; picture frame[128]; } movie;

static int read_file(GifFileType *gif, GifByteType *bytes, int count)
{
    return (int)fread(bytes, 1, (size_t)count, (FILE *)gif->UserData);
}
/* As a viewer shows it: every image over what was there. */
static void gif(movie *m, const clip *clips, const char *const *labels, int clip_count, int scale, int rate)
{
    FILE *f = tmpfile();
    int error = 0;
    char stamp[6];
    assert_true(f && clip_write_gif(f, clips, labels, clip_count, scale, rate) == 1);
    memset(m, 0, sizeof *m);
    rewind(f);
    assert_true(fread(stamp, 1, 6, f) == 6 && !memcmp(stamp, "GIF89a", 6));
    rewind(f);
    GifFileType *in = DGifOpen(f, read_file, &error);
    assert_true(in && DGifSlurp(in) == GIF_OK);
    m->count = in->ImageCount;
    assert_in_range(m->count, 1, 128);
    for (int i = 0; i < m->count; ++i) {
        SavedImage *image = &in->SavedImages[i];
        GraphicsControlBlock control;
        picture *p = &m->frame[i];
        size_t bytes = (size_t)in->SWidth * (size_t)in->SHeight * 3;
        p->width = in->SWidth;
        p->height = in->SHeight;
        p->rgb = (uint8_t *)mem_new(bytes);
        if (i) memcpy(p->rgb, m->frame[i - 1].rgb, bytes);
        assert_int_equal(DGifSavedExtensionToGCB(in, i, &control), GIF_OK);
        assert_true(control.DisposalMode == DISPOSE_DO_NOT && !control.UserInputFlag && !image->ImageDesc.ColorMap);
        m->delay[i] = control.DelayTime;
        for (int k = 0; k + 1 < image->ExtensionBlockCount; ++k) {
            const ExtensionBlock *e = image->ExtensionBlocks + k;
            if (e->Function == APPLICATION_EXT_FUNC_CODE && e->ByteCount == 11 && !memcmp(e->Bytes, "NETSCAPE2.0", 11))
                m->is_endless += i == 0 && e[1].ByteCount == 3 && !memcmp(e[1].Bytes, "\1\0\0", 3);
        }
        GifImageDesc d = image->ImageDesc;
        assert_true(d.Left >= 0 && d.Top >= 0 && d.Left + d.Width <= p->width && d.Top + d.Height <= p->height);
        if (i == 0) assert_true(d.Width == p->width && d.Height == p->height && control.TransparentColor == NO_TRANSPARENT_COLOR);
        for (int y = 0; y < d.Height; ++y)
            for (int x = 0; x < d.Width; ++x) {
                int index = image->RasterBits[y * d.Width + x];
                GifColorType color = in->SColorMap->Colors[index];
                uint8_t *to = p->rgb + ((size_t)(d.Top + y) * (size_t)p->width + (size_t)(d.Left + x)) * 3;
                if (index != control.TransparentColor) to[0] = color.Red, to[1] = color.Green, to[2] = color.Blue;
            }
    }
    assert_int_equal(DGifCloseFile(in, &error), GIF_OK);
    fclose(f);
}

static void test_gif(void **state)
{
    (void)state;
    static movie m;
    static const char *const labels[3] = {"dense", "sparse: 10 % of the pairs\n31.2 dB", 0};
    static const int cases[][4] = {{6, 20, 30, 3}, {3, 64, 48, 1}, {1, 5, 4, 4}, {2, 33, 70, 2}};
    for (int n = 0; n < COUNT(cases); ++n) {
        int frames = cases[n][0], h = cases[n][1], w = cases[n][2], scale = cases[n][3], x[3], y[3];
        clip c[3] = {clip_plain(frames, h, w, 11), clip_plain(frames, h, w, 12), clip_plain(frames, h, w, 13)};
        gif(&m, c, labels, 3, scale, 10);
        assert_int_equal(m.count, frames);
        assert_int_equal(m.is_endless, 1);
        for (int i = 0; i < 3; ++i) { /* few colours are kept exactly */
            find_frame(&m.frame[0], &c[i], 0, scale, &x[i], &y[i]);
            assert_int_equal(y[i], y[0]);
            if (i) assert_true(x[i] - x[i - 1] >= w * scale + 4 && (i < 2 || x[2] - x[1] == x[1] - x[0]));
            if (labels[i]) assert_true(count_ink(&m.frame[0], x[i], 0, x[i] + 30, y[i] - 1) > 10);
            else assert_int_equal(count_ink(&m.frame[0], x[i] - 1, 0, m.frame[0].width, y[i] - 1), 0);
            for (int f = 0; f < frames; ++f) {
                assert_true(same_frame(&m.frame[f], x[i], y[i], &c[i], f, scale));
                assert_int_equal(m.delay[f], 10);
            }
        }
        for (int f = 1; f < frames; ++f) /* the page does not change */
            for (int row = 0; row < m.frame[0].height; ++row)
                if (row < y[0] || row >= y[0] + h * scale)
                    assert_memory_equal(picture_at(&m.frame[f], 0, row), picture_at(&m.frame[0], 0, row), (size_t)m.frame[0].width * 3);
        picture *p = &m.frame[0];
        assert_int_equal(count_ink(p, 0, 0, p->width, 8) + count_ink(p, 0, 0, 8, p->height), 0);
        assert_int_equal(count_ink(p, 0, p->height - 8, p->width, p->height) + count_ink(p, p->width - 8, 0, p->width, p->height), 0);
        mem_done();
    }
}

/* Many colours: squares of pixels have the right mean, single pixels are not far off, what does not move does not flicker. */
static void test_gif_colors(void **state)
{
    (void)state;
    static movie m;
    int frames = 8, size = 32, scale = 8, left = 0, top = 0;
    clip plain[2] = {clip_plain(frames, size, size, 3), clip_plain(frames, size, size, 4)}, c[2];
    gif(&m, plain, 0, 2, scale, 10);
    find_frame(&m.frame[0], &plain[0], 0, scale, &left, &top); /* the place depends on extents alone */
    c[0] = clip_rainbow(frames, size, size);
    c[1] = clip_new(frames, size, size);
    for (int f = 0; f < frames; ++f) memcpy(c[1].rgb + (size_t)f * values(&c[1]) / 8, c[0].rgb, sizeof(float) * values(&c[0]) / 8); /* stands still */
    gif(&m, c, 0, 2, scale, 10);
    double square = 0, worst = 0, worst_pixel = 0;
    for (int f = 0; f < frames; ++f)
        for (int y = 0; y < size; ++y)
            for (int x = 0; x < size; ++x)
                for (int k = 0; k < 3; ++k) {
                    double want = 255 * (double)c[0].rgb[((f * size + y) * size + x) * 3 + k], mean = 0;
                    for (int i = 0; i < scale * scale; ++i) {
                        double got = picture_at(&m.frame[f], left + x * scale + i % scale, top + y * scale + i / scale)[k];
                        mean += got / (scale * scale);
                        worst_pixel = fmax(worst_pixel, fabs(got - want));
                    }
                    square += (mean - want) * (mean - want) / (frames * size * size * 3);
                    worst = fmax(worst, fabs(mean - want));
                }
    print_message("rainbow: rms error %.2f, at most %.1f, of a pixel %.1f of 255\n", sqrt(square), worst, worst_pixel);
    assert_at_most(sqrt(square), 4);
    assert_at_most(worst, 20);
    assert_at_most(worst_pixel, 64);
    for (int f = 1; f < frames; ++f)
        for (int y = top; y < top + size * scale; ++y) {
            int x = m.frame[0].width - left - size * scale;
            assert_memory_equal(picture_at(&m.frame[f], x, y), picture_at(&m.frame[0], x, y), (size_t)(size * scale) * 3);
        }
    clip noise = clip_random(2, 100, 100, 1); /* more colours than anybody needs */
    gif(&m, &noise, 0, 1, 1, 10);
    square = 0;
    for (int y = 0; y < 100; ++y)
        for (int x = 0; x < 100; ++x)
            for (int k = 0; k < 3; ++k) {
                double d = picture_at(&m.frame[0], m.frame[0].width - 112 + x, m.frame[0].height - 112 + y)[k] - 255 * (double)noise.rgb[(y * 100 + x) * 3 + k];
                square += d * d / 30000;
            }
    assert_at_most(sqrt(square), 24);
}

static void test_gif_time(void **state)
{
    (void)state;
    static movie m;
    static const int rates[] = {1, 7, 16, 24, 30, 50, 60, 100, 1000, INT32_MAX};
    for (int n = 0; n < COUNT(rates); ++n) {
        clip c = clip_plain(100, 4, 4, 1);
        double sum = 0;
        gif(&m, &c, 0, 1, 1, rates[n]);
        assert_int_equal(m.count, 100);
        for (int f = 0; f < 100; ++f) {
            sum += m.delay[f];
            assert_true(m.delay[f] >= 2 && fabs(m.delay[f] - fmax(100.0 / rates[n], 2)) <= 1);
        }
        if (rates[n] <= 50) assert_at_most(fabs(sum - 1e4 / rates[n]), 0.51);
        mem_done();
    }
}
#endif

/* ---- refusals ----------------------------------------------------------------------------- */
static int write_any(int kind, FILE *f, const clip *c, int count, int number, int scale)
{
    (void)count, (void)scale;
    switch (kind) {
    case 0: return clip_write_y4m(f, c, number);
#ifndef SVG2_TOOL_NO_PNG
    case 1: return clip_write_sheet(f, c, 0, count, number, scale);
#endif
#ifndef SVG2_TOOL_NO_GIF
    case 2: return clip_write_gif(f, c, 0, count, scale, number);
#endif
    default: return 0;
    }
}
static void test_refused(void **state)
{
    (void)state;
    clip good[2] = {clip_plain(2, 3, 4, 1), clip_plain(2, 3, 4, 2)};
    for (int kind = 0; kind < 3; ++kind) {
        FILE *f = tmpfile();
        assert_non_null(f);
        for (int n = 0; n < 8; ++n) {
            clip c[2] = {good[0], good[1]}, *bad = &c[kind ? 1 : 0]; /* the last one is looked at, too */
            if (n == 0) bad->rgb = 0;
            if (n == 1) bad->frames = 0;
            if (n == 2) bad->height = 0;
            if (n == 3) bad->width = -4;
            if (n == 4) bad->height = 65537;
            if (n == 5) bad->width = INT32_MAX;
            if (kind == 0 && n > 5) break;
            if (n == 6) bad->frames = 1; /* not alike */
            if (n == 7) bad->width = 3;
            assert_int_equal(write_any(kind, f, c, 2, 1, 1), 0);
        }
        assert_int_equal(write_any(kind, f, 0, 1, 1, 1), 0);
        assert_int_equal(write_any(kind, 0, good, 1, 1, 1), 0);
        assert_int_equal(write_any(kind, f, good, 1, 0, 1), 0);
        assert_int_equal(write_any(kind, f, good, 1, -1, 1), 0);
        if (kind) {
            assert_int_equal(write_any(kind, f, good, 0, 1, 1), 0);
            assert_int_equal(write_any(kind, f, good, 1, 1, 0), 0);
            assert_int_equal(write_any(kind, f, good, 1, 1, 40000), 0); /* beyond what the formats hold */
            assert_int_equal(write_any(kind, f, good, 1, 1, INT32_MAX), 0);
        }
        assert_int_equal(fflush(f), 0);
        assert_int_equal(fseek(f, 0, SEEK_END), 0);
        assert_int_equal(ftell(f), 0); /* nothing was written */
        fclose(f);
    }
}

static void test_full_disk(void **state)
{
    (void)state;
    clip small = clip_plain(2, 3, 4, 1), large = clip_random(4, 64, 64, 2);
    for (int kind = 0; kind < 3; ++kind)
        for (int n = 0; n < 4; ++n) {
            FILE *f = fopen("/dev/full", "wb");
            if (!f) skip();
            if (n & 1) setvbuf(f, 0, _IONBF, 0);
            assert_int_equal(write_any(kind, f, n & 2 ? &large : &small, 1, 1, 1), 0);
            fclose(f);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_psnr), TEST(test_ssim), TEST(test_y4m), TEST(test_sheet), TEST(test_gif),
                                       TEST(test_gif_colors), TEST(test_gif_time), TEST(test_refused), TEST(test_full_disk)};
    return cmocka_run_group_tests_name("clip", tests, 0, 0);
}
