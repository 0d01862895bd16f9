/* clip.h - MIT licence - what a generated clip becomes: numbers, a .y4m, a contact sheet, an animation; part of
   examples/wan/wan.c

   SVG2_TOOL_NO_PNG  without libpng: no clip_write_sheet     SVG2_TOOL_NO_GIF  without giflib: no clip_write_gif

   Writers return 1, or 0 on failure. A clip that is NULL, empty or more than 65536 pixels wide or high, clips of
   different extents and numbers below 1 are refused before anything is written. The file's buffer is written out, so
   that a full disk is noticed. A label is ASCII, broken into lines where it must be; what follows a '\n' in it is small
   print. labels may be NULL, and so may each of them.

   >>measure  PSNR, SSIM      >>y4m      >>page  labels, frames      >>sheet      >>palette      >>gif */
#ifndef CLIP_H_INCLUDED
#define CLIP_H_INCLUDED

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if !defined(SVG2_TOOL_NO_PNG) || !defined(SVG2_TOOL_NO_GIF)
#  include "../canvas.h"
#endif
#ifndef SVG2_TOOL_NO_GIF
#  include <gif_lib.h>
#endif

typedef struct clip {
    int32_t frames, height, width;
    float  *rgb; /* [F, H, W, 3] in [0, 1]; what lies outside is clamped where it is used, NaN is 0 */
} clip;

#define CLIP_MAX_EXTENT 65536

static int clip_is_usable(const clip *c)
{
    return c && c->rgb && c->frames > 0 && c->height > 0 && c->height <= CLIP_MAX_EXTENT && c->width > 0 &&
           c->width <= CLIP_MAX_EXTENT;
}

static int clip_is_alike(const clip *a, const clip *b)
{
    return a->frames == b->frames && a->height == b->height && a->width == b->width;
}

static double clip_value(float value) { return value > 0 ? value < 1 ? (double)value : 1 : 0; }

static const float *clip_pixel(const clip *c, int32_t frame, int32_t y, int32_t x)
{
    return c->rgb + (((size_t)frame * (size_t)c->height + (size_t)y) * (size_t)c->width + (size_t)x) * 3;
}

/* ==== >>measure ========================================================================== */
/* dB over all values of all frames, peak 1; INFINITY if they are equal, NAN if they cannot be compared */
static double clip_psnr(const clip *x, const clip *reference)
{
    double sum = 0;
    size_t count, i;
    if (!clip_is_usable(x) || !clip_is_usable(reference) || !clip_is_alike(x, reference)) return (double)NAN;
    count = (size_t)x->frames * (size_t)x->height * (size_t)x->width * 3;
    for (i = 0; i < count; ++i) {
        double difference = clip_value(x->rgb[i]) - clip_value(reference->rgb[i]);
        sum += difference * difference;
    }
    return sum > 0 ? 10 * log10((double)count / sum) : (double)INFINITY;
}

#define CLIP_SSIM_WINDOW 11
#define CLIP_SSIM_MAPS 5 /* x, y, x^2, y^2, x y */

/* count weights of a Gaussian with sigma 1.5, their sum is 1 */
static void clip_ssim_window(double *weight, int32_t count)
{
    double  sum = 0;
    int32_t i;
    for (i = 0; i < count; ++i) {
        double at = (i - 0.5 * (count - 1)) / 1.5;
        sum += weight[i] = exp(-0.5 * at * at);
    }
    for (i = 0; i < count; ++i) weight[i] /= sum;
}

static double clip_luma(const float *rgb) /* BT.601 */
{
    return 0.299 * clip_value(rgb[0]) + 0.587 * clip_value(rgb[1]) + 0.114 * clip_value(rgb[2]);
}

/* Mean structural similarity of luma over all frames: Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13 with their constants
   and windows that lie inside the picture. A side below 11 pixels makes the window smaller. NAN if the clips cannot be
   compared or memory is short. */
static double clip_ssim(const clip *x, const clip *reference)
{
    const double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
    double       row_weight[CLIP_SSIM_WINDOW], column_weight[CLIP_SSIM_WINDOW], *line, *rows, sum = 0;
    int32_t      window_height, window_width, height, width, frame, i, j, k, m;

    if (!clip_is_usable(x) || !clip_is_usable(reference) || !clip_is_alike(x, reference)) return (double)NAN;
    window_height = x->height < CLIP_SSIM_WINDOW ? x->height : CLIP_SSIM_WINDOW;
    window_width = x->width < CLIP_SSIM_WINDOW ? x->width : CLIP_SSIM_WINDOW;
    height = x->height - window_height + 1; /* positions of the window */
    width = x->width - window_width + 1;
    clip_ssim_window(row_weight, window_height);
    clip_ssim_window(column_weight, window_width);
    line = (double *)malloc((size_t)x->width * CLIP_SSIM_MAPS * sizeof(double));
    rows = (double *)malloc((size_t)x->height * (size_t)width * CLIP_SSIM_MAPS * sizeof(double));
    for (frame = 0; frame < x->frames && line && rows; ++frame) {
        for (i = 0; i < x->height; ++i) {
            double *row = rows + (size_t)i * (size_t)width * CLIP_SSIM_MAPS;
            for (j = 0; j < x->width; ++j) {
                double a = clip_luma(clip_pixel(x, frame, i, j)), b = clip_luma(clip_pixel(reference, frame, i, j));
                double *map = line + (size_t)j * CLIP_SSIM_MAPS;
                map[0] = a, map[1] = b, map[2] = a * a, map[3] = b * b, map[4] = a * b;
            }
            for (j = 0; j < width * CLIP_SSIM_MAPS; ++j) {
                row[j] = 0;
                for (k = 0; k < window_width; ++k) row[j] += column_weight[k] * line[j + k * CLIP_SSIM_MAPS];
            }
        }
        for (i = 0; i < height; ++i) {
            for (j = 0; j < width; ++j) {
                double mean[CLIP_SSIM_MAPS] = {0, 0, 0, 0, 0}, variance_x, variance_y, covariance;
                for (k = 0; k < window_height; ++k) {
                    const double *map = rows + ((size_t)(i + k) * (size_t)width + (size_t)j) * CLIP_SSIM_MAPS;
                    for (m = 0; m < CLIP_SSIM_MAPS; ++m) mean[m] += row_weight[k] * map[m];
                }
                variance_x = mean[2] - mean[0] * mean[0];
                variance_y = mean[3] - mean[1] * mean[1];
                covariance = mean[4] - mean[0] * mean[1];
                sum += (2 * mean[0] * mean[1] + c1) * (2 * covariance + c2) /
                       ((mean[0] * mean[0] + mean[1] * mean[1] + c1) * (variance_x + variance_y + c2));
            }
        }
    }
    if (!line || !rows) sum = (double)NAN;
    free(line);
    free(rows);
    return sum / ((double)x->frames * height * width);
}

/* ==== >>y4m ============================================================================== */
/* YUV4MPEG2, 4:4:4, 8 bits, BT.601, Y in 16 .. 235: what players take for granted where nothing is said. */
static int clip_write_y4m(FILE *file, const clip *c, int frames_per_second)
{
    static const double matrix[3][4] = { /* of red, green, blue in [0, 1], and of 1 */
        {65.481, 128.553, 24.966, 16}, {-37.797, -74.203, 112, 128}, {112, -93.786, -18.214, 128}};
    size_t   plane, i;
    uint8_t *bytes;
    int32_t  frame;
    int      k, is_written;

    if (!file || !clip_is_usable(c) || frames_per_second < 1) return 0;
    plane = (size_t)c->height * (size_t)c->width;
    bytes = (uint8_t *)malloc(3 * plane);
    if (!bytes) return 0;
    is_written = fprintf(file, "YUV4MPEG2 W%d H%d F%d:1 Ip A1:1 C444 XCOLORRANGE=LIMITED\n", (int)c->width,
                         (int)c->height, frames_per_second) > 0;
    for (frame = 0; frame < c->frames && is_written; ++frame) {
        const float *rgb = clip_pixel(c, frame, 0, 0);
        for (i = 0; i < plane; ++i, rgb += 3) {
            double red = clip_value(rgb[0]), green = clip_value(rgb[1]), blue = clip_value(rgb[2]);
            for (k = 0; k < 3; ++k) {
                bytes[(size_t)k * plane + i] = (uint8_t)(matrix[k][0] * red + matrix[k][1] * green +
                                                         matrix[k][2] * blue + matrix[k][3] + 0.5);
            }
        }
        is_written = fputs("FRAME\n", file) >= 0 && fwrite(bytes, 1, 3 * plane, file) == 3 * plane;
    }
    free(bytes);
    return is_written && fflush(file) == 0 && !ferror(file);
}

/* ==== >>page ============================================================================= */
#if !defined(SVG2_TOOL_NO_PNG) || !defined(SVG2_TOOL_NO_GIF)
#define CLIP_GAP 6
#define CLIP_LINE 11 /* of text, in units of the font; 7 of them are the height of a capital */

/* Of the font, beside frames of this width. */
static double clip_unit(int64_t width) { return width < 96 ? 1.5 : width < 160 ? 1.75 : 2; }

static int clip_are_usable(const clip *clips, int clip_count)
{
    int i;
    if (!clips || clip_count < 1) return 0;
    for (i = 0; i < clip_count; ++i) {
        if (!clip_is_usable(&clips[i]) || !clip_is_alike(&clips[i], &clips[0])) return 0;
    }
    return 1;
}

static uint8_t clip_byte(float value) { return (uint8_t)(255 * clip_value(value) + 0.5); }

static const char *clip_label(const char *const *labels, int i) { return labels && labels[i] ? labels[i] : ""; }

/* What of a text fits into one line: breaks at spaces where it can, always at '\n'. */
static int clip_line_length(const char *text, int limit)
{
    int end = (int)strcspn(text, "\n"), i;
    if (end <= limit) return end;
    for (i = limit; i > 0 && text[i] != ' '; --i) {}
    return i > 0 ? i : limit;
}

/* A label in lines of at most limit letters; what follows a '\n' of its own is small print. With a NULL canvas it only
   measures. Returns the lines; *widest is raised to the width of the widest one. */
static int clip_draw_label(canvas_image *canvas, double x, double y, double unit, int limit, const char *label,
                           double *widest)
{
    canvas_color color = canvas_ink;
    char         line[128];
    int          lines = 0;
    if (limit > (int)sizeof line - 1) limit = (int)sizeof line - 1;
    for (; *label; ++lines) {
        int count = clip_line_length(label, limit);
        memcpy(line, label, (size_t)count);
        line[count] = 0;
        if (canvas) canvas_print(canvas, x, y + lines * CLIP_LINE * unit, unit, color, line);
        if (canvas_text_width(line, unit) > *widest) *widest = canvas_text_width(line, unit);
        label += count;
        if (*label == '\n') color = canvas_faint;
        if (*label == '\n' || *label == ' ') ++label;
    }
    return lines;
}

/* One frame, every pixel a square of scale x scale, with a hairline around: a bright picture has an edge, too. */
static void clip_draw_frame(canvas_image *canvas, int left, int top, int scale, const clip *c, int32_t frame)
{
    size_t  row_bytes = (size_t)canvas->width * 3;
    int32_t x, y;
    int     i;
    canvas_rectangle(canvas, left - 1, top - 1, left + (double)c->width * scale + 1,
                     top + (double)c->height * scale + 1, canvas_track);
    for (y = 0; y < c->height; ++y) {
        uint8_t *row = canvas->pixels + ((size_t)top + (size_t)y * (size_t)scale) * row_bytes + (size_t)left * 3;
        uint8_t *at = row;
        for (x = 0; x < c->width; ++x) {
            const float *rgb = clip_pixel(c, frame, y, x);
            for (i = 0; i < scale; ++i, at += 3) {
                at[0] = clip_byte(rgb[0]);
                at[1] = clip_byte(rgb[1]);
                at[2] = clip_byte(rgb[2]);
            }
        }
        for (i = 1; i < scale; ++i) memcpy(row + (size_t)i * row_bytes, row, (size_t)(at - row));
    }
}
#endif

/* ==== >>sheet ============================================================================ */
#ifndef SVG2_TOOL_NO_PNG
#define CLIP_SHEET_MARGIN 24
#define CLIP_SHEET_LETTERS 20 /* of a line of a label */

/* Which frame stands in a column: first and last at the ends, the others at equal distances. */
static int32_t clip_sheet_frame(int32_t frames, int column, int columns)
{
    return columns > 1 ? (int32_t)(((int64_t)column * (frames - 1) + (columns - 1) / 2) / (columns - 1)) : 0;
}

/* A PNG: a row per clip with its label on the left, frames in columns with their numbers, from 1, on top. Fewer columns
   where the clips have fewer frames. */
static int clip_write_sheet(FILE *file, const clip *clips, const char *const *labels, int clip_count, int columns,
                            int scale)
{
    canvas_image canvas;
    double       unit, widest = 0;
    int64_t      cell_width, cell_height, row_height;
    int          left = CLIP_SHEET_MARGIN, top, most_lines = 0, has_room, i, k, is_written;
    char         text[32];

    if (!file || !clip_are_usable(clips, clip_count) || columns < 1 || scale < 1) return 0;
    if (columns > clips[0].frames) columns = (int)clips[0].frames;
    cell_width = (int64_t)clips[0].width * scale;
    cell_height = (int64_t)clips[0].height * scale;
    if (cell_width > INT16_MAX || cell_height > INT16_MAX) return 0;
    unit = clip_unit(cell_width);
    has_room = canvas_text_width("frame 100", unit) < (double)cell_width;
    for (i = 0; i < clip_count; ++i) {
        int lines = clip_draw_label(NULL, 0, 0, unit, CLIP_SHEET_LETTERS, clip_label(labels, i), &widest);
        if (lines > most_lines) most_lines = lines;
    }
    if (widest > 0) left += (int)ceil(widest) + 18;
    top = CLIP_SHEET_MARGIN + (int)(CLIP_LINE * unit);
    row_height = (int64_t)ceil(most_lines * CLIP_LINE * unit);
    if (row_height < cell_height) row_height = cell_height;
    if (!canvas_create(&canvas, left + columns * (cell_width + CLIP_GAP) - CLIP_GAP + CLIP_SHEET_MARGIN,
                       top + clip_count * (row_height + CLIP_GAP) - CLIP_GAP + CLIP_SHEET_MARGIN))
        return 0;
    for (k = 0; k < columns; ++k) {
        int32_t frame = clip_sheet_frame(clips[0].frames, k, columns);
        int     x = left + k * (int)(cell_width + CLIP_GAP);
        snprintf(text, sizeof text, "%s%d", k == 0 && has_room ? "frame " : "", (int)frame + 1);
        canvas_print(&canvas, x, CLIP_SHEET_MARGIN, unit, canvas_faint, text);
        for (i = 0; i < clip_count; ++i) {
            int y = top + i * (int)(row_height + CLIP_GAP) + (int)(row_height - cell_height) / 2;
            clip_draw_frame(&canvas, x, y, scale, &clips[i], frame);
        }
    }
    for (i = 0; i < clip_count; ++i) {
        int    lines = clip_draw_label(NULL, 0, 0, unit, CLIP_SHEET_LETTERS, clip_label(labels, i), &widest);
        double y = top + i * (double)(row_height + CLIP_GAP), text_height = (lines * CLIP_LINE - 4) * unit;
        y += ((double)row_height - text_height) / 2;
        clip_draw_label(&canvas, CLIP_SHEET_MARGIN, y, unit, CLIP_SHEET_LETTERS, clip_label(labels, i), &widest);
    }
    is_written = canvas_write_png(file, &canvas) && fflush(file) == 0 && !ferror(file);
    free(canvas.pixels);
    return is_written;
}
#endif

/* ==== >>palette ========================================================================== */
#ifndef SVG2_TOOL_NO_GIF
/* One palette for all frames of all clips, and a dither that stays in place: nothing flickers. The colours of the page
   come first, then those of the clips: boxes of colours are split at their mean, always the one with the greatest
   error, and k-means moves what came out. */
#define CLIP_COLORS 255  /* one of 256 is left for "as before" */
#define CLIP_PAGE_RAMP 8 /* from ink to white; then come faint and track */
#define CLIP_PAGE_COLORS (CLIP_PAGE_RAMP + 2)
#define CLIP_PALETTE_ROUNDS 8
#define CLIP_PALETTE_SAMPLES 300000 /* pixels looked at, about */

/* From this distance on a step in a smooth ground is seen, and colours are mixed. Mixing all of them made files 1.3
   times as large; mixing none left terraces. */
#define CLIP_DITHER_FROM 2.0f
/* What the distance of the two colours of a mix counts: 0.02 gave specks, 0.3 some terraces. */
#define CLIP_DITHER_COST 0.2f

typedef struct clip_color {
    float at[3]; /* red, green, blue by clip_axis: distances are what the eye sees, roughly */
    float weight;
} clip_color;

typedef struct clip_box {
    size_t begin, end;
    int    axis; /* the longest */
    double mean[3], weight, error;
} clip_box;

typedef struct clip_palette {
    int        count;
    clip_color color[CLIP_COLORS];
    uint8_t    rgb[CLIP_COLORS][3];
    uint32_t  *mix; /* [2^24] what stands for a colour: nearest + 1 | other << 8 | share of the other in 1/64 << 16;
                       0 where nobody has asked yet */
} clip_palette;

static float clip_axis(int k, double byte)
{
    static const double weight[3] = {0.55, 0.77, 0.45}; /* roots of 0.3, 0.6, 0.2 */
    return (float)(weight[k] * byte);
}

static clip_color clip_color_at(double red, double green, double blue, double weight)
{
    clip_color color;
    color.at[0] = clip_axis(0, red);
    color.at[1] = clip_axis(1, green);
    color.at[2] = clip_axis(2, blue);
    color.weight = (float)weight;
    return color;
}

/* Among the first count colours. */
static int clip_nearest(const clip_palette *palette, int count, const clip_color *color)
{
    float best = 1e30f;
    int   i, found = 0;
    for (i = 0; i < count; ++i) {
        float a = palette->color[i].at[0] - color->at[0], b = palette->color[i].at[1] - color->at[1];
        float c = palette->color[i].at[2] - color->at[2], distance = a * a + b * b + c * c;
        if (distance < best) best = distance, found = i;
    }
    return found;
}

static void clip_box_measure(clip_box *box, const clip_color *colors)
{
    double square[3] = {0, 0, 0};
    size_t i;
    int    k;
    box->mean[0] = box->mean[1] = box->mean[2] = box->weight = 0;
    for (i = box->begin; i < box->end; ++i) {
        double weight = (double)colors[i].weight;
        box->weight += weight;
        for (k = 0; k < 3; ++k) box->mean[k] += weight * (double)colors[i].at[k];
    }
    for (k = 0; k < 3; ++k) box->mean[k] /= box->weight;
    for (i = box->begin; i < box->end; ++i) {
        for (k = 0; k < 3; ++k) {
            double difference = (double)colors[i].at[k] - box->mean[k];
            square[k] += (double)colors[i].weight * difference * difference;
        }
    }
    box->axis = square[0] > square[1] ? square[0] > square[2] ? 0 : 2 : square[1] > square[2] ? 1 : 2;
    box->error = box->end - box->begin > 1 ? square[0] + square[1] + square[2] : 0;
}

/* Colours below the mean first; both parts get some, as there are different ones. */
static void clip_box_split(clip_box *box, clip_box *other, clip_color *colors)
{
    size_t low = box->begin, high = box->end;
    while (low < high) {
        if ((double)colors[low].at[box->axis] < box->mean[box->axis]) ++low;
        else {
            clip_color swapped = colors[low];
            colors[low] = colors[--high];
            colors[high] = swapped;
        }
    }
    other->begin = low;
    other->end = box->end;
    box->end = low;
    clip_box_measure(box, colors);
    clip_box_measure(other, colors);
}

/* The different colours of (a sample of) all pixels; NULL if memory is short. */
static clip_color *clip_collect(const clip *clips, int clip_count, size_t *count)
{
    size_t      pixels = (size_t)clips[0].frames * (size_t)clips[0].height * (size_t)clips[0].width, step, i;
    uint32_t   *seen = (uint32_t *)calloc((size_t)1 << 24, sizeof *seen); /* pages nobody touches cost nothing */
    clip_color *colors = NULL;
    int         k;
    step = pixels * (size_t)clip_count / CLIP_PALETTE_SAMPLES | 1;
    *count = 0;
    for (k = 0; k < clip_count && seen; ++k) {
        for (i = (size_t)k % step; i < pixels; i += step) {
            const float *rgb = clips[k].rgb + 3 * i;
            uint32_t     at = (uint32_t)clip_byte(rgb[0]) << 16 | (uint32_t)clip_byte(rgb[1]) << 8 | clip_byte(rgb[2]);
            if (seen[at]++ == 0) ++*count;
        }
    }
    if (seen) colors = (clip_color *)malloc((*count + 1) * sizeof *colors);
    for (i = *count = 0; i < (size_t)1 << 24 && colors; ++i) {
        if (!seen[i]) continue;
        colors[(*count)++] = clip_color_at((double)(i >> 16), (double)(i >> 8 & 255), (double)(i & 255), seen[i]);
    }
    free(seen);
    return colors;
}

static void clip_palette_add(clip_palette *palette, clip_color color) { palette->color[palette->count++] = color; }

static void clip_palette_add_page(clip_palette *palette)
{
    int i;
    for (i = 0; i < CLIP_PAGE_RAMP; ++i) {
        double       white = i / (CLIP_PAGE_RAMP - 1.0);
        canvas_color ink = canvas_ink;
        ink.red += (255 - ink.red) * white;
        ink.green += (255 - ink.green) * white;
        ink.blue += (255 - ink.blue) * white;
        clip_palette_add(palette, clip_color_at(ink.red, ink.green, ink.blue, 0));
    }
    clip_palette_add(palette, clip_color_at(canvas_faint.red, canvas_faint.green, canvas_faint.blue, 0));
    clip_palette_add(palette, clip_color_at(canvas_track.red, canvas_track.green, canvas_track.blue, 0));
}

static void clip_palette_add_boxes(clip_palette *palette, clip_color *colors, size_t count)
{
    clip_box boxes[CLIP_COLORS];
    int      box_count = 1, i, k;
    boxes[0].begin = 0;
    boxes[0].end = count;
    clip_box_measure(&boxes[0], colors);
    for (; box_count < CLIP_COLORS - CLIP_PAGE_COLORS; ++box_count) {
        clip_box *worst = boxes;
        for (i = 1; i < box_count; ++i) {
            if (boxes[i].error > worst->error) worst = &boxes[i];
        }
        if (!(worst->error > 0)) break;
        clip_box_split(worst, &boxes[box_count], colors);
    }
    for (i = 0; i < box_count; ++i) {
        clip_color mean;
        for (k = 0; k < 3; ++k) mean.at[k] = (float)boxes[i].mean[k];
        mean.weight = 0;
        clip_palette_add(palette, mean);
    }
}

/* One round of k-means; the colours of the page stay. */
static void clip_palette_move(clip_palette *palette, const clip_color *colors, size_t count)
{
    double sum[CLIP_COLORS][4];
    size_t i;
    int    n, k;
    memset(sum, 0, sizeof sum);
    for (i = 0; i < count; ++i) {
        n = clip_nearest(palette, palette->count, &colors[i]);
        for (k = 0; k < 3; ++k) sum[n][k] += (double)colors[i].weight * (double)colors[i].at[k];
        sum[n][3] += (double)colors[i].weight;
    }
    for (n = CLIP_PAGE_COLORS; n < palette->count; ++n) {
        for (k = 0; k < 3 && sum[n][3] > 0; ++k) palette->color[n].at[k] = (float)(sum[n][k] / sum[n][3]);
    }
}

/* Returns 0 if memory is short; mix is to be freed. */
static int clip_palette_create(clip_palette *palette, const clip *clips, int clip_count)
{
    size_t      count;
    clip_color *colors = clip_collect(clips, clip_count, &count);
    int         i, k;

    memset(palette, 0, sizeof *palette);
    palette->mix = (uint32_t *)calloc((size_t)1 << 24, sizeof *palette->mix);
    if (!colors || !palette->mix) {
        free(colors);
        return 0;
    }
    clip_palette_add_page(palette);
    clip_palette_add_boxes(palette, colors, count);
    for (i = 0; i < CLIP_PALETTE_ROUNDS; ++i) clip_palette_move(palette, colors, count);
    free(colors);
    for (i = 0; i < palette->count; ++i) { /* whole bytes */
        for (k = 0; k < 3; ++k) {
            palette->rgb[i][k] = (uint8_t)((double)palette->color[i].at[k] / (double)clip_axis(k, 1) + 0.5);
            palette->color[i].at[k] = clip_axis(k, palette->rgb[i][k]);
        }
    }
    return 1;
}

/* What stands for a colour: the nearest one and, where that is seen to be another, some of a second one. */
static uint32_t clip_palette_mix(const clip_palette *palette, const clip_color *color)
{
    int          nearest = clip_nearest(palette, palette->count, color), other = nearest, i;
    const float *from = palette->color[nearest].at;
    float        want[3], distance, best = 0, share = 0;
    for (i = 0; i < 3; ++i) want[i] = color->at[i] - from[i];
    distance = want[0] * want[0] + want[1] * want[1] + want[2] * want[2];
    for (i = 0; i < palette->count && distance > CLIP_DITHER_FROM * CLIP_DITHER_FROM; ++i) {
        const float *to = palette->color[i].at;
        float        a = to[0] - from[0], b = to[1] - from[1], c = to[2] - from[2], part, cost;
        float        along = a * want[0] + b * want[1] + c * want[2], length = a * a + b * b + c * c;
        if (!(along > 0)) continue;
        part = along < 0.5f * length ? along / length : 0.5f;
        cost = part * (part * length - 2 * along + CLIP_DITHER_COST * (1 - part) * length); /* beside distance */
        if (cost < best) best = cost, other = i, share = part;
    }
    return (uint32_t)(nearest + 1) | (uint32_t)other << 8 | (uint32_t)(64 * share + 0.5f) << 16;
}

/* The palette's colour for a place on the page, by ordered dither. */
static uint8_t clip_palette_index(const clip_palette *palette, const uint8_t *rgb, int x, int y)
{
    uint32_t *mix = &palette->mix[(uint32_t)rgb[0] << 16 | (uint32_t)rgb[1] << 8 | rgb[2]];
    uint32_t  threshold = 0;
    int       bit;
    if (!*mix) {
        clip_color color = clip_color_at(rgb[0], rgb[1], rgb[2], 0);
        *mix = clip_palette_mix(palette, &color);
    }
    for (bit = 0; bit < 3; ++bit) { /* Bayer's 8 x 8 matrix: the bits of x ^ y and y, the last ones first */
        threshold = threshold << 2 | (uint32_t)((x ^ y) >> bit & 1) << 1 | (uint32_t)(y >> bit & 1);
    }
    return (uint8_t)(threshold < *mix >> 16 ? *mix >> 8 & 255 : (*mix & 255) - 1);
}

/* Gives letters the colours that the palette has for them: no dither, no tint. */
static void clip_palette_snap(const clip_palette *palette, canvas_image *canvas)
{
    size_t   count = (size_t)canvas->width * (size_t)canvas->height;
    uint8_t *at;
    for (at = canvas->pixels; count > 0; --count, at += 3) {
        clip_color color = clip_color_at(at[0], at[1], at[2], 0);
        if (at[0] + at[1] + at[2] == 3 * 255) continue;
        memcpy(at, palette->rgb[clip_nearest(palette, CLIP_PAGE_COLORS, &color)], 3);
    }
}

/* ==== >>gif ============================================================================== */
#define CLIP_GIF_MARGIN 12
#define CLIP_GIF_LETTERS 12 /* that a line of a label has room for, however narrow the clip */

typedef struct clip_gif {
    GifFileType  *file;
    canvas_image  canvas;
    clip_palette  palette;
    uint8_t      *before; /* [height, width] palette indices that the viewer sees */
    uint8_t      *line;   /* [width]                                              */
} clip_gif;

static int clip_gif_output(GifFileType *gif, const GifByteType *bytes, int count)
{
    return (int)fwrite(bytes, 1, (size_t)count, (FILE *)gif->UserData);
}

/* Screen, palette and the extension that makes the animation endless. */
static int clip_gif_begin(clip_gif *gif, FILE *file)
{
    static const GifByteType endless[3] = {1, 0, 0};
    GifColorType             colors[256];
    ColorMapObject          *map;
    int                      i, is_begun;

    memset(colors, 0, sizeof colors);
    for (i = 0; i < gif->palette.count; ++i) {
        colors[i].Red = gif->palette.rgb[i][0];
        colors[i].Green = gif->palette.rgb[i][1];
        colors[i].Blue = gif->palette.rgb[i][2];
    }
    map = GifMakeMapObject(256, colors);
    if (map) gif->file = EGifOpen(file, clip_gif_output, NULL);
    if (gif->file) EGifSetGifVersion(gif->file, true);
    is_begun = gif->file && EGifPutScreenDesc(gif->file, gif->canvas.width, gif->canvas.height, 8, CLIP_PAGE_RAMP - 1,
                                              map) == GIF_OK &&
               EGifPutExtensionLeader(gif->file, APPLICATION_EXT_FUNC_CODE) == GIF_OK &&
               EGifPutExtensionBlock(gif->file, 11, "NETSCAPE2.0") == GIF_OK &&
               EGifPutExtensionBlock(gif->file, sizeof endless, endless) == GIF_OK &&
               EGifPutExtensionTrailer(gif->file) == GIF_OK;
    GifFreeMapObject(map);
    return is_begun;
}

/* Part of the canvas. Only what is not as before is painted: still grounds pack better. */
static int clip_gif_frame(clip_gif *gif, int is_first, int left, int top, int width, int height, int delay)
{
    GraphicsControlBlock control;
    GifByteType          extension[4];
    int                  x, y;

    control.DisposalMode = DISPOSE_DO_NOT;
    control.UserInputFlag = false;
    control.DelayTime = delay;
    control.TransparentColor = is_first ? NO_TRANSPARENT_COLOR : CLIP_COLORS;
    EGifGCBToExtension(&control, extension);
    if (EGifPutExtension(gif->file, GRAPHICS_EXT_FUNC_CODE, sizeof extension, extension) != GIF_OK ||
        EGifPutImageDesc(gif->file, left, top, width, height, false, NULL) != GIF_OK)
        return 0;
    for (y = top; y < top + height; ++y) {
        size_t at = (size_t)y * (size_t)gif->canvas.width + (size_t)left;
        for (x = 0; x < width; ++x, ++at) {
            uint8_t index = clip_palette_index(&gif->palette, gif->canvas.pixels + 3 * at, left + x, y);
            gif->line[x] = !is_first && index == gif->before[at] ? CLIP_COLORS : index;
            gif->before[at] = index;
        }
        if (EGifPutLine(gif->file, gif->line, width) != GIF_OK) return 0;
    }
    return 1;
}

/* GIF counts in 1/100 s: where a frame begins, rounded, so that the delays add up. */
static int64_t clip_gif_time(int64_t frame, int64_t frames_per_second)
{
    return (200 * frame + frames_per_second) / (2 * frames_per_second);
}

/* An endless animation, the clips side by side with their labels above. Above 50 frames per second it plays at 50:
   players take shorter delays for mistakes. */
static int clip_write_gif(FILE *file, const clip *clips, const char *const *labels, int clip_count, int scale,
                          int frames_per_second)
{
    clip_gif gif;
    double   unit, widest = 0;
    int64_t  width, height, slot, page_width, page_height;
    int32_t  frame;
    int      top, letters, most_lines = 0, i, is_written;

    if (!file || !clip_are_usable(clips, clip_count) || scale < 1 || frames_per_second < 1) return 0;
    width = (int64_t)clips[0].width * scale;
    height = (int64_t)clips[0].height * scale;
    if (width > UINT16_MAX || height > UINT16_MAX) return 0;
    unit = clip_unit(width);
    letters = (int)(((double)width / unit + 1) / 6);
    if (letters < CLIP_GIF_LETTERS) letters = CLIP_GIF_LETTERS;
    for (i = 0; i < clip_count; ++i) {
        int lines = clip_draw_label(NULL, 0, 0, unit, letters, clip_label(labels, i), &widest);
        if (lines > most_lines) most_lines = lines;
    }
    slot = (widest > (double)width ? (int64_t)ceil(widest) : width) + 2 * CLIP_GAP;
    top = CLIP_GIF_MARGIN + (most_lines ? (int)(most_lines * CLIP_LINE * unit) + 2 : 0);
    page_width = clip_count * slot - 2 * CLIP_GAP + 2 * CLIP_GIF_MARGIN;
    page_height = top + height + CLIP_GIF_MARGIN;
    memset(&gif, 0, sizeof gif);
    if (page_width > UINT16_MAX || page_height > UINT16_MAX || !canvas_create(&gif.canvas, page_width, page_height))
        return 0;
    gif.before = (uint8_t *)malloc((size_t)(page_width * page_height));
    gif.line = (uint8_t *)malloc((size_t)page_width);
    for (i = 0; i < clip_count; ++i) {
        clip_draw_label(&gif.canvas, CLIP_GIF_MARGIN + i * (double)slot, CLIP_GIF_MARGIN, unit, letters,
                        clip_label(labels, i), &widest);
    }
    is_written = gif.before && gif.line && clip_palette_create(&gif.palette, clips, clip_count);
    if (is_written) clip_palette_snap(&gif.palette, &gif.canvas);
    is_written = is_written && clip_gif_begin(&gif, file);
    for (frame = 0; frame < clips[0].frames && is_written; ++frame) {
        int64_t delay = clip_gif_time(frame + (int64_t)1, frames_per_second) - clip_gif_time(frame, frames_per_second);
        for (i = 0; i < clip_count; ++i) {
            clip_draw_frame(&gif.canvas, CLIP_GIF_MARGIN + i * (int)slot, top, scale, &clips[i], frame);
        }
        if (delay < 2) delay = 2;
        is_written = frame == 0 ? clip_gif_frame(&gif, 1, 0, 0, gif.canvas.width, gif.canvas.height, (int)delay)
                                : clip_gif_frame(&gif, 0, CLIP_GIF_MARGIN, top, (int)((clip_count - 1) * slot + width),
                                                 (int)height, (int)delay);
    }
    if (gif.file && EGifCloseFile(gif.file, NULL) != GIF_OK) is_written = 0;
    free(gif.before);
    free(gif.line);
    free(gif.palette.mix);
    free(gif.canvas.pixels);
    return is_written && fflush(file) == 0 && !ferror(file); /* giflib does not look at every write */
}
#endif

#endif /* CLIP_H_INCLUDED */
