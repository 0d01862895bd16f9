/* y4m.h - MIT licence - reads YUV4MPEG2 clips, frame by frame: 8 bit; mono, 4:2:0, 4:2:2, 4:4:4

   Part of examples/svg2.c. Files are untrusted: extents are limited, and a short frame is an error. */
#ifndef Y4M_H_INCLUDED
#define Y4M_H_INCLUDED

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define Y4M_MAX_EXTENT 65536

typedef struct y4m_clip {
    const char *path;
    FILE       *file;
    int32_t     width, height;
    int32_t     chroma_width, chroma_height; /* 0 for mono */
    char        rate[32], chroma[32];
    size_t      frame_bytes;
} y4m_clip;

static int y4m_is_clip(const char *path)
{
    char  magic[10];
    FILE *file = fopen(path, "rb");
    int   is_clip =
        file && fread(magic, 1, sizeof magic, file) == sizeof magic && !memcmp(magic, "YUV4MPEG2 ", sizeof magic);
    if (file) fclose(file);
    return is_clip;
}

/* One line without its end; 0 when it is too long or the file ends. */
static int y4m_line(FILE *file, char *line, size_t line_count)
{
    size_t used = 0;
    int    c;
    while ((c = getc(file)) != '\n') {
        if (c == EOF || used + 1 >= line_count || c == 0) return 0;
        line[used++] = (char)c;
    }
    line[used] = 0;
    return 1;
}

/* Returns NULL, or what is wrong. */
static const char *y4m_open(y4m_clip *clip, const char *path)
{
    char        line[512], *at;
    const char *wrong = NULL;
    int         is_420;

    memset(clip, 0, sizeof *clip);
    clip->path = path;
    clip->file = fopen(path, "rb");
    if (!clip->file) return "cannot be opened";
    memcpy(clip->chroma, "420", 4); /* what the format means where it says nothing */
    if (!y4m_line(clip->file, line, sizeof line) || strncmp(line, "YUV4MPEG2 ", 10) != 0) wrong = "damaged y4m header";
    for (at = line + 9; !wrong && *at == ' ';) {
        char  *word = at + 1;
        size_t count = strcspn(word, " ");
        char   kind = *word;
        at = word + count;
        if (kind == 'W' || kind == 'H') {
            char *end;
            long  value = strtol(word + 1, &end, 10);
            if (end != at || value < 1 || value > Y4M_MAX_EXTENT) wrong = "damaged y4m header: width or height";
            else if (kind == 'W') clip->width = (int32_t)value;
            else clip->height = (int32_t)value;
        } else if (kind == 'C' || kind == 'F') {
            char *target = kind == 'C' ? clip->chroma : clip->rate;
            if (count > sizeof clip->chroma) wrong = "damaged y4m header";
            else {
                memcpy(target, word + 1, count - 1);
                target[count - 1] = 0;
            }
        }
    }
    if (!wrong && (clip->width < 1 || clip->height < 1)) wrong = "damaged y4m header: no width or height";
    is_420 = !strcmp(clip->chroma, "420") || !strcmp(clip->chroma, "420jpeg") || !strcmp(clip->chroma, "420mpeg2") ||
             !strcmp(clip->chroma, "420paldv");
    if (!strcmp(clip->chroma, "mono")) clip->chroma_width = clip->chroma_height = 0;
    else if (is_420) clip->chroma_width = (clip->width + 1) / 2, clip->chroma_height = (clip->height + 1) / 2;
    else if (!strcmp(clip->chroma, "422")) clip->chroma_width = (clip->width + 1) / 2, clip->chroma_height = clip->height;
    else if (!strcmp(clip->chroma, "444")) clip->chroma_width = clip->width, clip->chroma_height = clip->height;
    else if (!wrong) wrong = "only 8-bit mono, 420, 422 and 444 clips are supported";
    clip->frame_bytes = (size_t)clip->width * (size_t)clip->height +
                        2 * (size_t)clip->chroma_width * (size_t)clip->chroma_height;
    if (wrong) {
        fclose(clip->file);
        clip->file = NULL;
    }
    return wrong;
}

/* Reads frame_bytes bytes: Y, then U and V. Returns 1, 0 at the end, -1 when the clip is damaged. */
static int y4m_read(y4m_clip *clip, uint8_t *frame)
{
    char line[512];
    int  c = getc(clip->file);
    if (c == EOF) return ferror(clip->file) ? -1 : 0;
    ungetc(c, clip->file);
    if (!y4m_line(clip->file, line, sizeof line) || strncmp(line, "FRAME", 5) != 0 || (line[5] && line[5] != ' '))
        return -1;
    return fread(frame, 1, clip->frame_bytes, clip->file) == clip->frame_bytes ? 1 : -1;
}

static void y4m_close(y4m_clip *clip)
{
    if (clip->file) fclose(clip->file);
    clip->file = NULL;
}

#endif /* Y4M_H_INCLUDED */
