/* A CUDA driver without a GPU: as much of libcuda.so.1 as pycuda's memory, streams and contexts
   take, in host memory, and as strict as the real one.

   Every call but the first few needs a current context, and each thread has a stack of its own.
   Device addresses point nowhere; device memory holds NaN. Asynchronous copies want page-locked
   memory and happen when their stream is waited for, not before. What isn't here answers "not
   supported" (NOT_SUPPORTED, for the names that real_pycuda.py appends).

   FAKE_GPUS: how many GPUs there are (1); FAKE_INIT: what cuInit answers (0).
   The functions that begin with fake_ are for the tests. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED,
       NO_DEVICE = 100, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, UNSUPPORTED = 801 };
#define NOT_SUPPORTED(name) int name(void) { return UNSUPPORTED; }
#define NEEDS_CONTEXT if (!depth) return INVALID_CONTEXT
#define BLOCKS 256

typedef struct { uint64_t address; char *memory; size_t size; } Block;
typedef struct Work { struct Work *next; void *to; const void *from; size_t size;
                      void (*function)(void *); void *data; } Work;
typedef struct Stream { Work *first, **last; int alive; } Stream;

static Block device[BLOCKS], page_locked[BLOCKS];
static char primary;  /* its address is the primary context */
static int initialised, retained, streams;
static __thread void *stack[BLOCKS];
static __thread int depth;

static int from_environment(const char *name, int otherwise) {
    return getenv(name) ? atoi(getenv(name)) : otherwise;
}

/* The block of a table that holds `size` bytes from `address` on. */
static Block *find(Block *table, uint64_t address, size_t size) {
    for (Block *block = table; block < table + BLOCKS; block++)
        if (block->memory && address >= block->address
            && address + size <= block->address + block->size)
            return block;
    return NULL;
}

static Block *allocate(Block *table, size_t size) {
    for (int i = 0; i < BLOCKS; i++)
        if (!table[i].memory) {
            table[i].memory = memset(malloc(size), 0xff, size);  /* as float32: NaN */
            table[i].size = size;
            table[i].address = table == device ? 0x1000 + ((uint64_t)(i + 1) << 32)
                                               : (uint64_t)(uintptr_t)table[i].memory;
            return &table[i];
        }
    return NULL;
}

static int release(Block *table, uint64_t address) {
    Block *block = find(table, address, 0);
    if (!block || block->address != address) return INVALID_VALUE;
    free(block->memory);
    block->memory = NULL;
    return SUCCESS;
}

static int start(Stream *stream, Work work) {
    if (!stream || !stream->alive) return INVALID_HANDLE;
    *stream->last = memcpy(malloc(sizeof work), &work, sizeof work);
    stream->last = &(*stream->last)->next;
    return SUCCESS;
}

int cuInit(unsigned flags) {
    int answer = from_environment("FAKE_INIT", SUCCESS);
    initialised = !answer;
    return answer;
}

int cuGetErrorString(int error, const char **text) {
    static char message[32];
    snprintf(message, sizeof message, "CUDA error %d", error);
    *text = error == NO_DEVICE ? "no CUDA-capable device is detected"
          : error == INVALID_CONTEXT ? "invalid device context" : message;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }

int cuDeviceGetCount(int *count) {
    *count = from_environment("FAKE_GPUS", 1);
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int *gpu, int number) { *gpu = number; return initialised ? SUCCESS : NOT_INITIALIZED; }

int cuDeviceGetName(char *name, int size, int gpu) {
    snprintf(name, size, "Fake GPU");
    return SUCCESS;
}

int cuDeviceComputeCapability(int *major, int *minor, int gpu) {
    *major = 5, *minor = 3;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int gpu) {
    *context = &primary;
    retained++;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int gpu) { return retained-- > 0 ? SUCCESS : INVALID_CONTEXT; }

int cuCtxPushCurrent_v2(void *context) {
    if (context != &primary || !retained || depth == BLOCKS) return INVALID_CONTEXT;
    stack[depth++] = context;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
    NEEDS_CONTEXT;
    *context = stack[--depth];
    return SUCCESS;
}

int cuCtxGetDevice(int *gpu) { NEEDS_CONTEXT; *gpu = 0; return SUCCESS; }

int cuMemHostAlloc(void **memory, size_t size, unsigned flags) {
    NEEDS_CONTEXT;
    Block *block = allocate(page_locked, size);
    *memory = block ? block->memory : NULL;
    return block ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *memory) {
    NEEDS_CONTEXT;
    return release(page_locked, (uint64_t)(uintptr_t)memory);
}

int cuMemAlloc_v2(uint64_t *address, size_t size) {
    NEEDS_CONTEXT;
    Block *block = allocate(device, size);
    *address = block ? block->address : 0;
    return block ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFree_v2(uint64_t address) { NEEDS_CONTEXT; return release(device, address); }

int cuStreamCreate(Stream **stream, unsigned flags) {
    NEEDS_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    (*stream)->last = &(*stream)->first;
    (*stream)->alive = 1;
    streams++;
    return SUCCESS;
}

int cuStreamDestroy_v2(Stream *stream) {  /* the memory stays, so that later use is an error */
    NEEDS_CONTEXT;
    if (!stream->alive) return INVALID_HANDLE;
    stream->alive = 0;
    streams--;
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Stream *stream) {
    NEEDS_CONTEXT;
    Block *block = find(device, to, size);
    if (!block || !find(page_locked, (uint64_t)(uintptr_t)from, size)) return INVALID_VALUE;
    Work work = {.to = block->memory + (to - block->address), .from = from, .size = size};
    return start(stream, work);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *stream) {
    NEEDS_CONTEXT;
    Block *block = find(device, from, size);
    if (!block || !find(page_locked, (uint64_t)(uintptr_t)to, size)) return INVALID_VALUE;
    Work work = {.to = to, .from = block->memory + (from - block->address), .size = size};
    return start(stream, work);
}

int cuLaunchHostFunc(Stream *stream, void (*function)(void *), void *data) {
    Work work = {.function = function, .data = data};
    return start(stream, work);
}

int cuStreamSynchronize(Stream *stream) {
    NEEDS_CONTEXT;
    if (!stream || !stream->alive) return INVALID_HANDLE;
    while (stream->first) {
        Work *work = stream->first;
        if (work->function) work->function(work->data);
        else memcpy(work->to, work->from, work->size);
        stream->first = work->next;
        free(work);
    }
    stream->last = &stream->first;
    return SUCCESS;
}

/* For the tests: what is allocated and open, this thread's contexts, device memory. */

int fake_alive(void) {
    int count = streams;
    for (int i = 0; i < BLOCKS; i++) count += !!device[i].memory + !!page_locked[i].memory;
    return count;
}

int fake_depth(void) { return depth; }

void *fake_memory(uint64_t address, size_t size) {
    Block *block = find(device, address, size);
    return block ? block->memory + (address - block->address) : NULL;
}
