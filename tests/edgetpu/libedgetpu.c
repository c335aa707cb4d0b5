/* A libedgetpu.so.1 without hardware: the C interface of the real one (edgetpu_c.h) and a TensorFlow Lite delegate that runs
 * `edgetpu-custom-op`. What TPUs there are and what each does stands in the file that FAKE_EDGETPU names, one a line, read again
 * whenever it has changed:
 *
 *     pci|usb PATH BEHAVIOUR [MILLISECONDS]
 *
 * BEHAVIOUR: run (after so many milliseconds), error (the invoke fails, as when the TPU was unplugged), wedge (it never returns), crash (SIGSEGV),
 * absent (not listed; opening it blocks as long as the real one does). `open-ms N` makes opening slow, `skew N` mimics a build
 * for another ABI, which crashes when it is first used. FAKE_EDGETPU_LOG names a file that hears of each opening and invoke.
 *
 * A compiled model is one custom op whose options hold a chain of quantized fully connected layers (see models.py); it computes
 * what its twin does.
 *
 * The structures are those of TensorFlow Lite's core/c/common.h, as far as they are used here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef enum { OK = 0, ERROR = 1 } TfLiteStatus;

typedef struct {
  int size;
  int data[];
} TfLiteIntArray;

typedef struct {
  int type;
  union {
    int8_t *int8;
    void *data;
  } data;
  TfLiteIntArray *dims;
  struct {
    float scale;
    int32_t zero_point;
  } params;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  struct TfLiteDelegate *delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  struct {
    int type;
    void *params;
  } quantization;
  void *sparsity;
  const TfLiteIntArray *dims_signature;
} TfLiteTensor;

typedef struct {
  TfLiteIntArray *inputs, *outputs, *intermediates, *temporaries;
  void *user_data;
  void *builtin_data;
  const void *custom_initial_data;
  int custom_initial_data_size;
  struct TfLiteDelegate *delegate;
  bool might_have_side_effect;
} TfLiteNode;

struct TfLiteContext;

typedef struct {
  void *(*init)(struct TfLiteContext *, const char *, size_t);
  void (*free)(struct TfLiteContext *, void *);
  TfLiteStatus (*prepare)(struct TfLiteContext *, TfLiteNode *);
  TfLiteStatus (*invoke)(struct TfLiteContext *, TfLiteNode *);
  const char *(*profiling_string)(const struct TfLiteContext *, const TfLiteNode *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *registration_external;
  void *async_kernel;
  uint64_t inplace_operator;
} TfLiteRegistration;

typedef struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(struct TfLiteContext *, TfLiteIntArray **);
  TfLiteTensor *tensors;
  void *impl;
  TfLiteStatus (*ResizeTensor)(struct TfLiteContext *, TfLiteTensor *, TfLiteIntArray *);
  void (*ReportError)(struct TfLiteContext *, const char *, ...);
  TfLiteStatus (*AddTensors)(struct TfLiteContext *, int, int *);
  TfLiteStatus (*GetNodeAndRegistration)(struct TfLiteContext *, int, TfLiteNode **, TfLiteRegistration **);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(struct TfLiteContext *, TfLiteRegistration,
                                                        const TfLiteIntArray *, struct TfLiteDelegate *);
  /* more follows; nothing of it is used */
} TfLiteContext;

typedef struct TfLiteDelegate {
  void *data;
  TfLiteStatus (*Prepare)(TfLiteContext *, struct TfLiteDelegate *);
  void *CopyFromBufferHandle, *CopyToBufferHandle, *FreeBufferHandle;
  int64_t flags;
  void *opaque_delegate_builder;
} TfLiteDelegate;

/* --- what the tests decide -------------------------------------------------------------------------------------- */

enum { DEVICES_LIMIT = 256, PATH_LIMIT = 256 };
enum behaviour { RUN, FAIL, WEDGE, CRASH, ABSENT };

struct device {
  int type; /* 0: PCIe, 1: USB */
  char path[PATH_LIMIT];
  enum behaviour behaviour;
  int ms;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct device devices[DEVICES_LIMIT];
static int device_count, open_ms, skew;
static struct timespec read_at;

static void read_devices(void) {
  const char *path = getenv("FAKE_EDGETPU");
  struct stat found;
  if (path == NULL || stat(path, &found) != 0) {
    device_count = 0;
    return;
  }
  if (memcmp(&found.st_mtim, &read_at, sizeof read_at) == 0) return;
  read_at = found.st_mtim;
  device_count = open_ms = skew = 0;
  FILE *file = fopen(path, "re");
  char line[512];
  while (file != NULL && fgets(line, sizeof line, file) != NULL && device_count < DEVICES_LIMIT) {
    struct device *device = &devices[device_count];
    char bus[16], behaviour[16];
    device->ms = 0;
    if (sscanf(line, "open-ms %d", &open_ms) == 1 || sscanf(line, "skew %d", &skew) == 1) continue;
    if (sscanf(line, "%15s %255s %15s %d", bus, device->path, behaviour, &device->ms) < 3) continue;
    device->type = strcmp(bus, "usb") == 0;
    device->behaviour = !strcmp(behaviour, "error")    ? FAIL
                        : !strcmp(behaviour, "wedge")  ? WEDGE
                        : !strcmp(behaviour, "crash")  ? CRASH
                        : !strcmp(behaviour, "absent") ? ABSENT
                                                       : RUN;
    device_count++;
  }
  if (file != NULL) fclose(file);
}

static bool find(const char *path, struct device *out) {
  pthread_mutex_lock(&lock);
  read_devices();
  bool found = false;
  for (int i = 0; i < device_count && !found; i++)
    if (strcmp(devices[i].path, path) == 0) {
      *out = devices[i];
      found = true;
    }
  pthread_mutex_unlock(&lock);
  return found;
}

static void note(const char *what, const char *path) {
  const char *log = getenv("FAKE_EDGETPU_LOG");
  if (log == NULL) return;
  char line[512];
  int length = snprintf(line, sizeof line, "%s %s\n", what, path);
  int file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file >= 0) {
    if (write(file, line, (size_t)length) != length) abort();
    close(file);
  }
}

static void pause_ms(int ms) {
  struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
  while (nanosleep(&time, &time) != 0) {
  }
}

/* --- edgetpu_c.h -------------------------------------------------------------------------------------------------- */

struct edgetpu_device {
  int type;
  const char *path;
};

struct edgetpu_option {
  const char *name, *value;
};

const char *edgetpu_version(void) { return "a stand-in for tests"; }

/* In another order each time: nobody may count on one. */
struct edgetpu_device *edgetpu_list_devices(size_t *count) {
  pthread_mutex_lock(&lock);
  read_devices();
  if (skew) raise(SIGSEGV);
  struct edgetpu_device *list = calloc(DEVICES_LIMIT, sizeof *list + PATH_LIMIT);
  char *paths = (char *)(list + DEVICES_LIMIT);
  size_t n = 0;
  for (int i = 0; i < device_count; i++)
    if (devices[i].behaviour != ABSENT) {
      list[n].type = devices[i].type;
      list[n].path = strcpy(paths + n * PATH_LIMIT, devices[i].path);
      n++;
    }
  pthread_mutex_unlock(&lock);
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  unsigned seed = (unsigned)now.tv_nsec;
  for (size_t i = n; i > 1; i--) {
    size_t j = (size_t)rand_r(&seed) % i;
    struct edgetpu_device other = list[i - 1];
    list[i - 1] = list[j];
    list[j] = other;
  }
  *count = n;
  return list;
}

void edgetpu_free_devices(struct edgetpu_device *list) { free(list); }

/* --- the program of a compiled model ------------------------------------------------------------------------------- */

struct layer {
  int32_t inputs, outputs, input_zero, output_zero, lowest, highest;
  const float *multipliers;
  const int8_t *weights;
  const int32_t *bias;
};

struct program {
  char path[PATH_LIMIT];
  int32_t layer_count;
  struct layer layers[16];
};

static void *init(TfLiteContext *context, const char *buffer, size_t length) {
  (void)context, (void)length;
  /* For a kernel of a delegate, `buffer` is TfLiteDelegateParams: the delegate, then the nodes that it replaces. */
  const struct {
    TfLiteDelegate *delegate;
    TfLiteIntArray *nodes;
  } *params = (const void *)buffer;
  struct program *program = calloc(1, sizeof *program);
  strcpy(program->path, params->delegate->data);
  TfLiteNode *node;
  TfLiteRegistration *registration;
  context->GetNodeAndRegistration(context, params->nodes->data[0], &node, &registration);
  const char *at = node->custom_initial_data;
  int32_t name_length;
  if (node->custom_initial_data_size < 16 || memcmp(at, "FAKETPU1", 8) != 0) return program;
  memcpy(&name_length, at + 8, 4);
  at += 12 + name_length;
  memcpy(&program->layer_count, at, 4);
  at += 4;
  for (int i = 0; i < program->layer_count; i++) {
    struct layer *layer = &program->layers[i];
    memcpy(layer, at, 6 * sizeof(int32_t));
    at += 6 * sizeof(int32_t);
    layer->multipliers = (const float *)at;
    at += 4 * layer->outputs;
    layer->bias = (const int32_t *)at;
    at += 4 * layer->outputs;
    layer->weights = (const int8_t *)at;
    at += (layer->inputs * layer->outputs + 3) / 4 * 4;
  }
  return program;
}

static void release(TfLiteContext *context, void *program) {
  (void)context;
  free(program);
}

static TfLiteStatus prepare(TfLiteContext *context, TfLiteNode *node) {
  struct program *program = node->user_data;
  if (program->layer_count == 0) {
    context->ReportError(context, "no program of this compiler");
    return ERROR;
  }
  return OK;
}

static void run(const struct program *program, const int8_t *input, int8_t *output) {
  int8_t buffers[2][8192];
  for (int i = 0; i < program->layer_count; i++) {
    const struct layer *layer = &program->layers[i];
    int8_t *to = i + 1 == program->layer_count ? output : buffers[i % 2];
    for (int row = 0; row < layer->outputs; row++) {
      const int8_t *weights = layer->weights + (size_t)row * layer->inputs;
      int32_t sum = layer->bias[row];
      for (int column = 0; column < layer->inputs; column++)
        sum += (input[column] - layer->input_zero) * weights[column];
      long value = lrintf((float)sum * layer->multipliers[row]) + layer->output_zero;
      to[row] = (int8_t)(value < layer->lowest ? layer->lowest : value > layer->highest ? layer->highest : value);
    }
    input = to;
  }
}

static TfLiteStatus invoke(TfLiteContext *context, TfLiteNode *node) {
  struct program *program = node->user_data;
  struct device device;
  if (!find(program->path, &device)) device.behaviour = FAIL;
  note("invoke", program->path);
  switch (device.behaviour) {
    case WEDGE:
      for (;;) pause();
    case CRASH:
      raise(SIGSEGV);
      /* fall through */
    case FAIL:
    case ABSENT:
      context->ReportError(context, "USB transfer error 5 [LibUsbDataOut]");
      return ERROR;
    case RUN:
      if (device.ms) pause_ms(device.ms);
  }
  TfLiteTensor *input = &context->tensors[node->inputs->data[0]];
  TfLiteTensor *output = &context->tensors[node->outputs->data[0]];
  run(program, input->data.int8, output->data.int8);
  return OK;
}

/* --- the delegate --------------------------------------------------------------------------------------------------- */

static TfLiteStatus take_nodes(TfLiteContext *context, TfLiteDelegate *delegate) {
  TfLiteIntArray *plan;
  if (context->GetExecutionPlan(context, &plan) != OK) return ERROR;
  TfLiteIntArray *ours = malloc(sizeof *ours + (size_t)plan->size * sizeof(int));
  ours->size = 0;
  for (int i = 0; i < plan->size; i++) {
    TfLiteNode *node;
    TfLiteRegistration *registration;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) != OK) return ERROR;
    if (registration->custom_name != NULL && strcmp(registration->custom_name, "edgetpu-custom-op") == 0)
      ours->data[ours->size++] = plan->data[i];
  }
  TfLiteRegistration kernel = {init, release, prepare, invoke, .custom_name = "EdgeTpuDelegateForCustomOp", .version = 1};
  TfLiteStatus status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, ours, delegate);
  free(ours);
  return status;
}

TfLiteDelegate *edgetpu_create_delegate(int type, const char *path, const struct edgetpu_option *options, size_t count) {
  (void)options, (void)count;
  struct device device;
  note("open", path);
  if (!find(path, &device) || device.behaviour == ABSENT || device.type != type) {
    pause_ms(25000);
    return NULL;
  }
  pause_ms(open_ms);
  TfLiteDelegate *delegate = calloc(1, sizeof *delegate);
  delegate->data = strdup(path);
  delegate->Prepare = take_nodes;
  delegate->flags = 1; /* kTfLiteDelegateFlagsAllowDynamicTensors */
  return delegate;
}

void edgetpu_free_delegate(TfLiteDelegate *delegate) {
  note("close", delegate->data);
  free(delegate->data);
  free(delegate);
}
