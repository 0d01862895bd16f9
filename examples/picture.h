/* picture.h - MIT licence - the block map of every head as a PNG; part of examples/svg2.c

   One panel per head: query blocks downwards, key blocks to the right, sizes to scale. Blocks computed exactly are blue;
   skipped ones are blank, or shaded by the exact attention mass they hold where the oracle has been asked. Clusters come
   out of k-means in no order: here both sides are ordered by correspondence analysis, so that blocks which attend to one
   another come near the diagonal. Strips along the axes show cluster sizes, coloured by mean time of the tokens.

   >>colour  what means what   >>order  of the clusters      >>panel  one head      >>page  layout, legend, chart */
#ifndef PICTURE_H_INCLUDED
#define PICTURE_H_INCLUDED

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct picture_desc {
    const char    *title, *settings;
    int32_t        batch, heads, heads_kv, query_tokens, key_tokens;
    int32_t        query_blocks, key_blocks, query_clusters, key_clusters;
    int            has_text, has_frames;
    int            is_ordered;   /* blocks stay as they come: there is an order in them */
    int32_t        text_begin;   /* tokens before the video: not part of time        */
    const int32_t *query_label, *key_label;
    const int32_t *query_offset, *key_offset;
    const uint8_t *map;
    const float   *mass;         /* [B, H, Qb, Kb] or NULL                           */
    float         *density;      /* [B*H]                                            */
    const double  *recall;       /* [B*H] or NULL                                    */
} picture_desc;

#ifndef SVG2_TOOL_NO_PNG
#include "canvas.h"

#define PICTURE_MAX_PANELS 64

/* ==== >>colour =========================================================================== */
static const canvas_color picture_exact = {38, 84, 148}, picture_blank = {247, 248, 250}, picture_text = {46, 139, 87},
                          picture_padding = {186, 190, 198}, picture_missed = {222, 120, 40};

static canvas_color picture_mix(canvas_color a, canvas_color b, double share_of_b)
{
    a.red += (b.red - a.red) * share_of_b;
    a.green += (b.green - a.green) * share_of_b;
    a.blue += (b.blue - a.blue) * share_of_b;
    return a;
}

/* Colours given at equal distances; at in [0, 1]. */
static canvas_color picture_ramp(const canvas_color *stops, int count, double at)
{
    double scaled = (at < 0 || !(at == at) ? 0 : at > 1 ? 1 : at) * (count - 1);
    int    first = (int)scaled < count - 1 ? (int)scaled : count - 2;
    return picture_mix(stops[first], stops[first + 1], scaled - first);
}

static canvas_color picture_time_color(double time)
{
    static const canvas_color stops[5] = {{68, 30, 110}, {58, 82, 139}, {33, 145, 140}, {120, 200, 80}, {250, 210, 40}};
    return picture_ramp(stops, 5, time);
}

/* relative: mass per pair, 1 = what uniform attention would give it */
static canvas_color picture_skipped_color(double relative)
{
    static const canvas_color stops[5] = {
        {250, 250, 251}, {253, 238, 214}, {250, 196, 120}, {232, 128, 50}, {168, 52, 20}};
    return picture_ramp(stops, 5, relative > 0 ? (log10(relative) + 3) / 4 : 0);
}

static canvas_color picture_exact_color(double relative)
{
    static const canvas_color stops[4] = {{142, 178, 220}, {66, 118, 186}, {26, 66, 130}, {8, 22, 58}};
    return picture_ramp(stops, 4, relative > 0 ? (log10(relative) + 1) / 3 : 0);
}

/* ==== >>order ============================================================================ */
typedef struct picture_rank {
    double  key;
    int32_t index;
} picture_rank;

static int picture_by_key(const void *left, const void *right)
{
    const picture_rank *a = (const picture_rank *)left, *b = (const picture_rank *)right;
    if (a->key != b->key) return a->key < b->key ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

/* Everything that one panel is drawn from. Sides: 0 queries, 1 keys. */
typedef struct picture_panel {
    const picture_desc *desc;
    int32_t             blocks[2], clusters[2], tokens[2];
    const int32_t      *label[2], *offset[2];
    const uint8_t      *map;
    const float        *mass;
    double             *time[2];  /* [blocks] mean time of the tokens, 0 .. 1 */
    int32_t            *order[2]; /* [blocks]                                 */
    double             *begin[2]; /* [blocks + 1] position, 0 .. 1            */
} picture_panel;

static double picture_size(const picture_panel *panel, int side, int32_t block)
{
    return panel->offset[side][block + 1] - panel->offset[side][block];
}

static double picture_weight(const picture_panel *panel, int32_t i, int32_t j)
{
    size_t index = (size_t)i * (size_t)panel->blocks[1] + (size_t)j;
    if (panel->mass) return (double)panel->mass[index];
    return panel->map[index] ? picture_size(panel, 0, i) * picture_size(panel, 1, j) : 0;
}

/* Some rows and columns of one head's weights, being put in order. */
typedef struct picture_seriation {
    const double *weight; /* [clusters of queries, clusters of keys] */
    int32_t       columns;
    double       *score[2];
    double       *sum[2];
} picture_seriation;

/* Power iteration of correspondence analysis within the given rows and columns: each side moves to the weighted mean of
   what it is joined with, centred and scaled. It starts from the scores as they are, so that directions are kept. */
static void picture_correspondence(picture_seriation *s, const int32_t *rows, int32_t row_count, const int32_t *columns,
                                   int32_t column_count)
{
    double *x = s->score[1], *y = s->score[0], total = 0, mean, square;
    int32_t i, j;
    int     round;

    for (j = 0; j < column_count; ++j) s->sum[1][columns[j]] = 0;
    for (i = 0; i < row_count; ++i) {
        const double *weight = s->weight + (size_t)rows[i] * (size_t)s->columns;
        s->sum[0][rows[i]] = 0;
        for (j = 0; j < column_count; ++j) {
            s->sum[0][rows[i]] += weight[columns[j]];
            s->sum[1][columns[j]] += weight[columns[j]];
        }
        total += s->sum[0][rows[i]];
    }
    for (round = 0; round < 40 && total > 0; ++round) {
        mean = square = 0;
        for (j = 0; j < column_count; ++j) mean += s->sum[1][columns[j]] * x[columns[j]] / total;
        for (j = 0; j < column_count; ++j) {
            x[columns[j]] -= mean;
            square += s->sum[1][columns[j]] * x[columns[j]] * x[columns[j]] / total;
        }
        if (!(square > 1e-24)) return;
        for (j = 0; j < column_count; ++j) x[columns[j]] /= sqrt(square);
        for (i = 0; i < row_count; ++i) {
            const double *weight = s->weight + (size_t)rows[i] * (size_t)s->columns;
            double        sum = 0;
            for (j = 0; j < column_count; ++j) sum += weight[columns[j]] * x[columns[j]];
            if (s->sum[0][rows[i]] > 0) y[rows[i]] = sum / s->sum[0][rows[i]];
        }
        for (j = 0; j < column_count; ++j) {
            if (s->sum[1][columns[j]] > 0) x[columns[j]] = 0;
        }
        for (i = 0; i < row_count; ++i) {
            const double *weight = s->weight + (size_t)rows[i] * (size_t)s->columns;
            for (j = 0; j < column_count; ++j) {
                if (weight[columns[j]] > 0) x[columns[j]] += weight[columns[j]] * y[rows[i]] / s->sum[1][columns[j]];
            }
        }
    }
}

static void picture_sort(int32_t *indices, int32_t count, const double *score, picture_rank *scratch)
{
    int32_t i;
    for (i = 0; i < count; ++i) scratch[i].key = score[indices[i]], scratch[i].index = indices[i];
    qsort(scratch, (size_t)count, sizeof *scratch, picture_by_key);
    for (i = 0; i < count; ++i) indices[i] = scratch[i].index;
}

/* Sort by the first axis. With depth > 0 split where it changes sign and order both parts by axes of their own: heads
   that attend in groups become block diagonal, for which one axis is not enough. */
static void picture_seriate(picture_seriation *s, int32_t *rows, int32_t row_count, int32_t *columns,
                            int32_t column_count, int depth, picture_rank *scratch)
{
    int32_t row_split = 0, column_split = 0;
    picture_correspondence(s, rows, row_count, columns, column_count);
    picture_sort(rows, row_count, s->score[0], scratch);
    picture_sort(columns, column_count, s->score[1], scratch);
    while (row_split < row_count && s->score[0][rows[row_split]] < 0) ++row_split;
    while (column_split < column_count && s->score[1][columns[column_split]] < 0) ++column_split;
    if (depth == 0 || row_split < 2 || column_split < 2 || row_count - row_split < 2 ||
        column_count - column_split < 2)
        return;
    picture_seriate(s, rows, row_split, columns, column_split, depth - 1, scratch);
    picture_seriate(s, rows + row_split, row_count - row_split, columns + column_split, column_count - column_split,
                    depth - 1, scratch);
}

/* How far the weight is from the diagonal; it saturates, since far is far: compact groups beat a broad band. */
static double picture_stretch(const picture_panel *panel, const picture_seriation *s, int32_t *const order[2])
{
    double *place[2], sum = 0;
    int32_t i, j;
    int     side;
    place[0] = s->sum[0], place[1] = s->sum[1]; /* free by now */
    for (side = 0; side < 2; ++side) {
        double at = 0;
        for (i = 0; i < panel->clusters[side]; ++i) {
            double size = picture_size(panel, side, order[side][i]) / panel->tokens[side];
            place[side][order[side][i]] = at + size / 2;
            at += size;
        }
    }
    for (i = 0; i < panel->clusters[0]; ++i) {
        for (j = 0; j < panel->clusters[1]; ++j) {
            double distance = fabs(place[0][i] - place[1][j]);
            sum += s->weight[(size_t)i * (size_t)s->columns + (size_t)j] * distance / (distance + 0.08);
        }
    }
    return sum;
}

/* Fill panel->order for the clusters, trying one axis and a hierarchy of axes. Returns 0 when memory is short. */
static int picture_arrange(picture_panel *panel)
{
    int32_t rows = panel->clusters[0], columns = panel->clusters[1], most = rows > columns ? rows : columns, i, j;
    double *weight = (double *)malloc(((size_t)rows * (size_t)columns + 1) * sizeof(double)), best = 0, slope = 0;
    double           *numbers = (double *)malloc(2 * ((size_t)rows + (size_t)columns + 2) * sizeof(double));
    int32_t          *trial = (int32_t *)malloc(((size_t)rows + (size_t)columns + 1) * sizeof(int32_t)), *order[2];
    picture_rank     *scratch = (picture_rank *)malloc(((size_t)most + 1) * sizeof *scratch);
    picture_seriation s;
    int               depth, side, is_complete = weight && numbers && trial && scratch;

    for (i = 0; is_complete && i < rows; ++i) {
        for (j = 0; j < columns; ++j) {
            double w = picture_weight(panel, i, j);
            weight[(size_t)i * (size_t)columns + (size_t)j] = w > 0 && w < 1e300 ? w : 0;
        }
    }
    for (depth = 0; is_complete && depth <= 6; depth += 6) {
        double stretch;
        s.weight = weight;
        s.columns = columns;
        s.sum[0] = numbers, s.sum[1] = numbers + rows;
        s.score[0] = numbers + rows + columns, s.score[1] = s.score[0] + rows;
        order[0] = trial, order[1] = trial + rows;
        for (side = 0; side < 2; ++side) {
            for (i = 0; i < panel->clusters[side]; ++i) order[side][i] = i, s.score[side][i] = panel->time[side][i];
        }
        picture_seriate(&s, order[0], rows, order[1], columns, depth, scratch);
        stretch = picture_stretch(panel, &s, order);
        if (depth == 0 || stretch < best) {
            best = stretch;
            for (side = 0; side < 2; ++side) {
                for (i = 0; i < panel->clusters[side]; ++i) panel->order[side][i] = order[side][i];
            }
        }
    }
    for (i = 0; is_complete && i < columns; ++i) { /* of the two directions, the one that runs with time */
        int32_t block = panel->order[1][i];
        slope += picture_size(panel, 1, block) * (panel->time[1][block] - 0.5) * (i - columns / 2);
    }
    for (side = 0; side < 2 && slope < 0; ++side) {
        for (i = 0, j = panel->clusters[side] - 1; i < j; ++i, --j) {
            int32_t swapped = panel->order[side][i];
            panel->order[side][i] = panel->order[side][j];
            panel->order[side][j] = swapped;
        }
    }
    free(weight);
    free(numbers);
    free(trial);
    free(scratch);
    return is_complete;
}

static int picture_panel_create(picture_panel *panel, const picture_desc *desc, int32_t index)
{
    int32_t head = index % desc->heads, batch = index / desc->heads, side, block, s, i;
    int32_t head_kv = head / (desc->heads / desc->heads_kv);
    size_t  query_index = (size_t)index, key_index = (size_t)batch * (size_t)desc->heads_kv + (size_t)head_kv;
    size_t  map_index = query_index * (size_t)desc->query_blocks * (size_t)desc->key_blocks;
    int     is_complete = 1;

    memset(panel, 0, sizeof *panel);
    panel->desc = desc;
    panel->blocks[0] = desc->query_blocks, panel->clusters[0] = desc->query_clusters,
    panel->tokens[0] = desc->query_tokens;
    panel->blocks[1] = desc->key_blocks, panel->clusters[1] = desc->key_clusters, panel->tokens[1] = desc->key_tokens;
    panel->label[0] = desc->query_label + query_index * (size_t)desc->query_tokens;
    panel->label[1] = desc->key_label + key_index * (size_t)desc->key_tokens;
    panel->offset[0] = desc->query_offset + query_index * (size_t)(desc->query_blocks + 1);
    panel->offset[1] = desc->key_offset + key_index * (size_t)(desc->key_blocks + 1);
    panel->map = desc->map + map_index;
    panel->mass = desc->mass ? desc->mass + map_index : NULL;
    for (side = 0; side < 2; ++side) {
        size_t count = (size_t)panel->blocks[side] + 1;
        panel->time[side] = (double *)calloc(count, sizeof(double));
        panel->begin[side] = (double *)calloc(count, sizeof(double));
        panel->order[side] = (int32_t *)calloc(count, sizeof(int32_t));
        if (!panel->time[side] || !panel->begin[side] || !panel->order[side]) is_complete = 0;
    }
    if (!is_complete) return 0;
    for (side = 0; side < 2; ++side) {
        int32_t first = desc->text_begin, video = 0;
        for (s = 0; s < panel->tokens[side]; ++s) video += panel->label[side][s] < panel->clusters[side];
        for (s = 0; s < panel->tokens[side]; ++s) {
            panel->time[side][panel->label[side][s]] += (s - first + 0.5) / (video > 0 ? video : 1);
        }
        for (block = 0; block < panel->blocks[side]; ++block) {
            double size = picture_size(panel, side, block);
            panel->time[side][block] = size > 0 ? panel->time[side][block] / size : 0.5;
        }
    }
    if (!desc->is_ordered && !picture_arrange(panel)) return 0;
    for (side = 0; side < 2; ++side) {
        for (i = 0; i < panel->blocks[side]; ++i) {
            if (desc->is_ordered || i >= panel->clusters[side]) panel->order[side][i] = i; /* text and padding stay behind */
            panel->begin[side][i + 1] =
                panel->begin[side][i] + picture_size(panel, side, panel->order[side][i]) / panel->tokens[side];
        }
    }
    return 1;
}

static void picture_panel_destroy(picture_panel *panel)
{
    int side;
    for (side = 0; side < 2; ++side) {
        free(panel->time[side]);
        free(panel->begin[side]);
        free(panel->order[side]);
    }
}

/* ==== >>panel ============================================================================ */
#define PICTURE_STRIP 26.0
#define PICTURE_HEADER 40.0

/* Add value * (overlap of [begin, end) with each of `extent` pixels) to sums. Positions in 0 .. 1. */
static void picture_spread(double *sums, int extent, double begin, double end, double value)
{
    double from = begin * extent, to = end * extent;
    int    x = (int)from;
    for (; x < extent && x < to; ++x) {
        double low = x > from ? x : from, high = x + 1 < to ? x + 1 : to;
        if (high > low) sums[x] += value * (high - low);
    }
}

/* The map, every pixel the mean over the pairs behind it: blocks may be smaller than a pixel. */
static void picture_draw_map(canvas_image *canvas, const picture_panel *panel, int left, int top, int extent)
{
    size_t  pixels = (size_t)extent * (size_t)extent;
    double *sums = (double *)calloc(3 * pixels + 3 * (size_t)extent, sizeof(double)); /* exact area, its mass, other mass */
    double *row = sums + 3 * pixels;
    double  uniform = (double)extent * extent / panel->tokens[0]; /* mass of the whole is tokens[0]; area extent^2 */
    int     x, y, k;
    int32_t i, j;

    if (!sums) return;
    for (i = 0; i < panel->blocks[0]; ++i) {
        int32_t block = panel->order[0][i];
        double  from = panel->begin[0][i] * extent, to = panel->begin[0][i + 1] * extent;
        if (!(to > from)) continue;
        for (x = 0; x < 3 * extent; ++x) row[x] = 0;
        for (j = 0; j < panel->blocks[1]; ++j) {
            size_t index = (size_t)block * (size_t)panel->blocks[1] + (size_t)panel->order[1][j];
            double begin = panel->begin[1][j], end = panel->begin[1][j + 1];
            if (!(end > begin)) continue;
            if (panel->map[index]) picture_spread(row, extent, begin, end, 1);
            if (panel->mass) { /* per pixel of area of this block */
                double per_area = (double)panel->mass[index] / ((end - begin) * extent * (to - from));
                picture_spread(row + (panel->map[index] ? extent : 2 * extent), extent, begin, end, per_area);
            }
        }
        for (y = (int)from; y < extent && y < to; ++y) {
            double low = y > from ? y : from, high = y + 1 < to ? y + 1 : to;
            for (k = 0; k < 3; ++k) {
                double *line = sums + (size_t)k * pixels + (size_t)y * (size_t)extent;
                for (x = 0; x < extent; ++x) line[x] += (high - low) * row[k * extent + x];
            }
        }
    }
    for (y = 0; y < extent; ++y) {
        for (x = 0; x < extent; ++x) {
            size_t       at = (size_t)y * (size_t)extent + (size_t)x;
            double       exact = sums[at] < 1 ? sums[at] : 1;
            canvas_color blue = picture_exact, blank = picture_blank;
            if (panel->mass) {
                blue = picture_exact_color(exact > 1e-6 ? sums[pixels + at] / exact * uniform : 0);
                blank = picture_skipped_color(exact < 1 - 1e-6 ? sums[2 * pixels + at] / (1 - exact) * uniform : 0);
            }
            canvas_blend(canvas, left + x, top + y, picture_mix(blank, blue, exact), 1);
        }
    }
    free(sums);
}

/* Strip along one side: cluster sizes as bars, coloured by time; text and padding marked. */
static void picture_draw_strip(canvas_image *canvas, const picture_panel *panel, int side, int left, int top, int extent)
{
    const picture_desc *desc = panel->desc;
    double *height = (double *)calloc((size_t)extent * 2, sizeof(double)), *time = height + extent, largest = 1;
    int32_t             i;
    int                 x;

    if (!height) return;
    for (i = 0; i < panel->clusters[side]; ++i) {
        double size = picture_size(panel, side, i);
        largest = size > largest ? size : largest;
    }
    for (i = 0; i < panel->clusters[side]; ++i) {
        int32_t block = panel->order[side][i];
        double  begin = panel->begin[side][i], end = panel->begin[side][i + 1];
        picture_spread(height, extent, begin, end, picture_size(panel, side, block) / largest);
        picture_spread(time, extent, begin, end, panel->time[side][block]);
    }
    for (x = 0; x < extent; ++x) {
        double       length = 3 + (PICTURE_STRIP - 5) * height[x];
        canvas_color color = picture_time_color(time[x]);
        if (!(height[x] > 0)) continue;
        if (side == 1) canvas_rectangle(canvas, left + x, top - 3 - length, left + x + 1, top - 3, color);
        else canvas_rectangle(canvas, left - 3 - length, top + x, left - 3, top + x + 1, color);
    }
    for (i = panel->clusters[side]; i < panel->blocks[side]; ++i) { /* at least two pixels: 77 of 118,800 must be seen */
        double       from = panel->begin[side][i] * extent, to = panel->begin[side][i + 1] * extent, at;
        int          is_text = desc->has_text && i == panel->clusters[side];
        canvas_color color = is_text ? picture_text : picture_padding;
        if (!(to > from)) continue;
        at = to - from < 2 ? to - 2 : from;
        if (side == 1) canvas_rectangle(canvas, left + at, top - PICTURE_STRIP, left + to, top - 3, color);
        else canvas_rectangle(canvas, left - PICTURE_STRIP, top + at, left - 3, top + to, color);
        if (is_text) { /* where the video ends */
            if (side == 1)
                canvas_rectangle(canvas, left + from - 0.5, top, left + from + 0.5, top + extent, picture_text);
            else canvas_rectangle(canvas, left, top + from - 0.5, left + extent, top + from + 0.5, picture_text);
        } else {
            int a, b; /* hatched: nothing is computed here */
            for (a = (int)from; a < to; ++a) {
                for (b = 0; b < extent; ++b) {
                    double cover = (a + b) % 7 < 2 ? 0.75 : 0.12;
                    if (side == 1) canvas_blend(canvas, left + a, top + b, picture_padding, cover);
                    else canvas_blend(canvas, left + b, top + a, picture_padding, cover);
                }
            }
        }
    }
    free(height);
}

static void picture_draw_panel(canvas_image *canvas, const picture_panel *panel, int32_t index, int left, int top,
                               int extent)
{
    const picture_desc *desc = panel->desc;
    double              density = (double)desc->density[index], unit = extent >= 400 ? 2.4 : 1.9, x = left, y;
    char                text[96];

    y = top - PICTURE_STRIP - PICTURE_HEADER;
    if (desc->batch > 1) snprintf(text, sizeof text, "batch %d head %d", index / desc->heads, index % desc->heads);
    else snprintf(text, sizeof text, "head %d", index);
    canvas_print(canvas, x, y, unit, canvas_ink, text);
    snprintf(text, sizeof text, "%.1f %%", 100 * density);
    canvas_print(canvas, x + extent - canvas_text_width(text, unit), y, unit, picture_exact, text);
    if (desc->recall && extent >= 280) {
        snprintf(text, sizeof text, "recall %.3f", desc->recall[index]);
        canvas_print(canvas, x + extent * 0.5 - canvas_text_width(text, unit) / 2, y, unit, picture_missed, text);
    }
    y += 8 * unit + 4;
    canvas_rectangle(canvas, left, y, left + extent, y + 6, canvas_track);
    canvas_rectangle(canvas, left, y, left + extent * density, y + 6, picture_exact);
    picture_draw_map(canvas, panel, left, top, extent);
    picture_draw_strip(canvas, panel, 0, left, top, extent);
    picture_draw_strip(canvas, panel, 1, left, top, extent);
    canvas_rectangle(canvas, left - 1, top - 1, left + extent + 1, top, canvas_faint);
    canvas_rectangle(canvas, left - 1, top + extent, left + extent + 1, top + extent + 1, canvas_faint);
    canvas_rectangle(canvas, left - 1, top, left, top + extent, canvas_faint);
    canvas_rectangle(canvas, left + extent, top, left + extent + 1, top + extent, canvas_faint);
}

/* ==== >>page ============================================================================= */
/* A legend that breaks its lines. With a NULL canvas it only measures. */
typedef struct picture_legend {
    canvas_image *canvas;
    double        left, right, x, y;
} picture_legend;

#define PICTURE_UNIT 2.0 /* of small print */

static void picture_legend_room(picture_legend *legend, double width)
{
    if (legend->x > legend->left && legend->x + width > legend->right) {
        legend->x = legend->left;
        legend->y += 32;
    }
}

static void picture_legend_entry(picture_legend *legend, const canvas_color *colors, int count, const char *text)
{
    double width = count > 1 ? 96 : 22, all = width + 8 + canvas_text_width(text, PICTURE_UNIT);
    int    x;
    picture_legend_room(legend, all);
    if (legend->canvas) {
        for (x = 0; x < (int)width; ++x) {
            canvas_color color = count > 1 ? picture_ramp(colors, count, x / (width - 1)) : colors[0];
            canvas_rectangle(legend->canvas, legend->x + x, legend->y, legend->x + x + 1, legend->y + 14, color);
        }
        canvas_print(legend->canvas, legend->x + width + 8, legend->y, PICTURE_UNIT, canvas_ink, text);
    }
    legend->x += all + 34;
}

static void picture_legend_note(picture_legend *legend, const char *text)
{
    double width = canvas_text_width(text, PICTURE_UNIT);
    picture_legend_room(legend, width);
    if (legend->canvas) canvas_print(legend->canvas, legend->x, legend->y, PICTURE_UNIT, canvas_faint, text);
    legend->x += width + 34;
}

/* Returns the y below it. */
static double picture_draw_legend(canvas_image *canvas, const picture_desc *desc, double left, double right, double y)
{
    picture_legend legend;
    canvas_color   ramp[9];
    int            i;

    legend.canvas = canvas;
    legend.left = legend.x = left;
    legend.right = right;
    legend.y = y;
    if (desc->mass) {
        for (i = 0; i < 9; ++i) ramp[i] = picture_exact_color(pow(10, -1 + 3 * i / 8.0));
        picture_legend_entry(&legend, ramp, 9, "computed, mass per pair 0.1 .. 100 x uniform");
        for (i = 0; i < 9; ++i) ramp[i] = picture_skipped_color(pow(10, -3 + 4 * i / 8.0));
        picture_legend_entry(&legend, ramp, 9, "skipped, 0.001 .. 10 x uniform");
    } else {
        picture_legend_entry(&legend, &picture_exact, 1, "computed exactly");
        picture_legend_entry(&legend, &canvas_track, 1, "skipped");
    }
    for (i = 0; i < 9; ++i) ramp[i] = picture_time_color(i / 8.0);
    picture_legend_entry(&legend, ramp, 9, desc->has_frames ? "cluster sizes, coloured by mean frame: first .. last"
                                                            : "cluster sizes, coloured by mean position: first .. last");
    if (desc->has_text) picture_legend_entry(&legend, &picture_text, 1, "text");
    if (desc->key_blocks - desc->key_clusters > (desc->has_text ? 1 : 0)) {
        picture_legend_entry(&legend, &picture_padding, 1, "padding");
    }
    picture_legend_note(&legend, desc->is_ordered
                                     ? "down: queries   right: keys   sizes to scale, blocks in the order of their head"
                                     : "down: queries   right: keys   sizes to scale, clusters ordered by correspondence analysis");
    return legend.y + 32;
}

/* Density (and missed mass) of all heads side by side. */
static void picture_draw_chart(canvas_image *canvas, const picture_desc *desc, double left, double right, double top,
                               double height)
{
    int32_t heads = desc->batch * desc->heads, head;
    double  largest = 0, mean = 0, step, value, slot, bar;
    double  first = left + 64, bottom = top + height;
    char    text[32];

    for (head = 0; head < heads; ++head) {
        mean += (double)desc->density[head] / heads;
        if ((double)desc->density[head] > largest) largest = (double)desc->density[head];
        if (desc->recall && 1 - desc->recall[head] > largest) largest = 1 - desc->recall[head];
    }
    step = largest > 0.5 ? 0.25 : largest > 0.2 ? 0.1 : largest > 0.1 ? 0.05 : largest > 0.04 ? 0.02 : 0.01;
    largest = ceil(largest / step - 1e-9) * step;
    if (!(largest > 0)) largest = step;
    for (value = 0; value <= largest + 1e-9; value += step) {
        double y = bottom - height * value / largest;
        canvas_rectangle(canvas, first, y - 0.5, right, y + 0.5, canvas_track);
        snprintf(text, sizeof text, "%.0f %%", 100 * value);
        canvas_print(canvas, first - 10 - canvas_text_width(text, 1.8), y - 6, 1.8, canvas_faint, text);
    }
    slot = (right - first) / heads;
    bar = slot * 0.7 < 46 ? slot * 0.7 : 46;
    for (head = 0; head < heads; ++head) {
        double x = first + slot * (head + 0.5), split = desc->recall ? x + bar * 0.15 : x + bar / 2;
        canvas_rectangle(canvas, x - bar / 2, bottom - height * (double)desc->density[head] / largest, split, bottom,
                         picture_exact);
        if (desc->recall) {
            canvas_rectangle(canvas, split, bottom - height * (1 - desc->recall[head]) / largest, x + bar / 2, bottom,
                             picture_missed);
        }
        snprintf(text, sizeof text, "%d", head % desc->heads);
        if (canvas_text_width(text, 1.8) + 4 < slot) {
            canvas_print(canvas, x - canvas_text_width(text, 1.8) / 2, bottom + 8, 1.8, canvas_faint, text);
        }
    }
    for (value = first; value < right; value += 14) {
        double y = bottom - height * mean / largest;
        canvas_rectangle(canvas, value, y - 0.75, value + 8 < right ? value + 8 : right, y + 0.75, canvas_ink);
    }
    snprintf(text, sizeof text, "mean %.1f %%", 100 * mean);
    canvas_print(canvas, right - canvas_text_width(text, 1.8), bottom - height * mean / largest - 18, 1.8,
                 canvas_ink, text);
    canvas_print(canvas, first, top - 30, PICTURE_UNIT, canvas_ink,
                 desc->recall ? "density of each head; orange: attention mass missed" : "density of each head");
}

/* Returns 0 on failure. */
static int picture_write(FILE *file, const picture_desc *desc)
{
    static const struct {
        int panels, columns, extent;
    } layouts[] = {{1, 1, 1080}, {2, 2, 820}, {4, 2, 780}, {6, 3, 600}, {9, 3, 580}, {12, 4, 460}, {16, 4, 440},
                   {25, 5, 360}, {36, 6, 320}, {1 << 30, 8, 240}};
    canvas_image   canvas;
    int32_t heads = desc->batch * desc->heads, panels = heads < PICTURE_MAX_PANELS ? heads : PICTURE_MAX_PANELS,
            index;
    int            columns, extent, rows, margin = 44, gap = 30, chart = heads > 1 ? 190 : 0, x, y, i;
    double         right, unit, legend_top, panels_top, bottom;
    char           note[64];

    for (i = 0; panels > layouts[i].panels; ++i) {}
    columns = layouts[i].columns;
    extent = layouts[i].extent;
    rows = (panels + columns - 1) / columns;
    x = extent + (int)PICTURE_STRIP + gap;
    y = extent + (int)(PICTURE_STRIP + PICTURE_HEADER) + gap;
    right = margin + columns * x - gap;
    legend_top = margin + 76;
    panels_top = picture_draw_legend(NULL, desc, margin, right, legend_top) + 14;
    bottom = panels_top + rows * y;
    if (!canvas_create(&canvas, 2 * margin + columns * x - gap,
                       (int)bottom + (chart ? chart + 84 : 0) + (panels < heads ? 30 : 0) + 14))
        return 0;

    unit = (right - margin) / (6 * (double)strlen(desc->title));
    canvas_print(&canvas, margin, margin - 8, unit < 3.4 ? unit : 3.4, canvas_ink, desc->title);
    unit = (right - margin) / (6 * (double)strlen(desc->settings));
    canvas_print(&canvas, margin, margin + 32, unit < 2.2 ? unit : 2.2, canvas_faint, desc->settings);
    picture_draw_legend(&canvas, desc, margin, right, legend_top);
    for (index = 0; index < panels; ++index) {
        picture_panel panel;
        int           is_complete = picture_panel_create(&panel, desc, index);
        if (is_complete) {
            picture_draw_panel(&canvas, &panel, index, margin + index % columns * x + (int)PICTURE_STRIP,
                               (int)panels_top + index / columns * y + (int)(PICTURE_STRIP + PICTURE_HEADER), extent);
        }
        picture_panel_destroy(&panel);
        if (!is_complete) {
            free(canvas.pixels);
            return 0;
        }
    }
    if (panels < heads) {
        snprintf(note, sizeof note, "%d more heads are not shown", heads - panels);
        canvas_print(&canvas, margin, bottom, PICTURE_UNIT, canvas_faint, note);
        bottom += 30;
    }
    if (chart) picture_draw_chart(&canvas, desc, margin, right, bottom + 36, chart);

    i = canvas_write_png(file, &canvas);
    free(canvas.pixels);
    return i;
}

#endif /* SVG2_TOOL_NO_PNG */
#endif /* PICTURE_H_INCLUDED */
