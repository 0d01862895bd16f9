# svg2: one header. What is built here is its tool, its tests and its benchmark. "make help" lists the targets.
MAKEFLAGS += -r
config ?= release
ifeq ($(origin CC),default)
CC := gcc
endif
B := build$(if $(filter-out release,$(config)),/$(config))

WARNINGS := -Wall -Wextra -pedantic -Wshadow -Wconversion -Wsign-conversion -Wcast-qual -Wundef
ASSERTS := '-DSVG2_ASSERT(x)=((x) ? (void)0 : __builtin_trap())'
FLAGS_release := -O2
FLAGS_debug := -O0 -g $(ASSERTS)
FLAGS_asan := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -DSVG2_DEBUG_WORKSPACE $(ASSERTS)
FLAGS_tsan := -O1 -g -fsanitize=thread
FLAGS_scalar := -O2 -DSVG2_NO_SIMD
ifeq ($(FLAGS_$(config)),)
$(error config is one of release debug asan tsan scalar)
endif
FLAGS := -std=c99 -ffp-contract=off $(WARNINGS) $(FLAGS_$(config)) -MMD -MP $(CFLAGS)
OPENMP := $(if $(filter tsan,$(config)),,-fopenmp)

TESTS := base dtype dispatch kmeans permute score select attention skip tiles front mass schedule parallel pipeline stats
PROGRAMS := $(TESTS:%=$B/tests/test_%)

all: $B/svg2 $B/wan $B/minimal

$B/svg2: examples/svg2.c build/.deps | $B/tests
	$(CC) $(FLAGS) $(OPENMP) -I. $< $$(CC="$(CC)" tests/deps.sh tool-flags) $(LDFLAGS) -lm -o $@
$B/wan: examples/wan/wan.c build/.deps | $B/tests
	$(CC) $(FLAGS) $(OPENMP) -I. $< $$(CC="$(CC)" tests/deps.sh wan-flags) $(LDFLAGS) -lm -o $@
$B/minimal: examples/minimal.c | $B/tests
	$(CC) $(FLAGS) -I. $< $(LDFLAGS) -lm -o $@
$B/bench: bench/bench.c | $B/tests
	$(CC) $(FLAGS) $(OPENMP) '-DSVG2_BENCH_COMMIT="$(shell git rev-parse --short HEAD 2>/dev/null)"' \
		'-DSVG2_BENCH_FLAGS="$(strip -std=c99 $(FLAGS_$(config)) -ffp-contract=off $(CFLAGS))"' -I. $< $(LDFLAGS) -lm -o $@

$B/tests/%.o: tests/%.c | $B/tests
	$(CC) $(FLAGS) -c $< -o $@
$B/tests/test_%: $B/tests/test_%.o $B/tests/impl.o
	$(CC) $(FLAGS_$(config)) $^ $(LDFLAGS) -lcmocka -lpthread -lm -o $@
$B/tests/test_tool $B/tests/test_dispatch: $B/tests/test_%: $B/tests/test_%.o
	$(CC) $(FLAGS_$(config)) $^ $(LDFLAGS) -lcmocka -lm -o $@
$B/tests/test_wan: tests/test_wan.c build/.deps | $B/tests
	$(CC) $(FLAGS) $(OPENMP) -I. $< $$(CC="$(CC)" tests/deps.sh wan-flags) $(LDFLAGS) -lcmocka -lpthread -lm -o $@
$B/tests/test_clip $B/tests/test_file: $B/tests/test_%: tests/test_%.c $B/tests/impl.o build/.deps | $B/tests
	$(CC) $(FLAGS) -I. $< $B/tests/impl.o $$(CC="$(CC)" tests/deps.sh wan-flags) $(LDFLAGS) -lcmocka -lpthread -lm -o $@
$B/tests/test_wan_tool: $B/tests/test_wan_tool.o $B/tests/impl.o
	$(CC) $(FLAGS_$(config)) $^ $(LDFLAGS) -lcmocka -lcjson -lpthread -lm -o $@
$B/tests/fuzz_desc $B/tests/fuzz_file: $B/tests/fuzz_%: $B/tests/fuzz_%.o $B/tests/fuzz_main.o
	$(CC) $(FLAGS_$(config)) $^ $(LDFLAGS) $$(CC="$(CC)" tests/deps.sh tool-flags | grep -o -e -lcjson) -lm -o $@
ifeq ($(shell CC="$(CC)" tests/deps.sh has cjson/cJSON.h || echo no),no)
$B/tests/fuzz_file.o: FLAGS += -DTF_NO_CJSON
endif

# The kernels of svg2_cuda.cu on the CPU: the unit compiled as C++ on top of tests/emu. The engine itself is never built with
# -fsanitize=thread: it tells the sanitizer which CUDA thread is running.
CUDA ?= $(or $(patsubst %/bin/nvcc,%,$(shell command -v nvcc)),/usr/local/cuda)
CXX := $(if $(filter default,$(origin CXX)),g++,$(CXX))
EMU_WARNINGS := -Wall -Wextra -Wshadow -Wno-unknown-pragmas -Wno-psabi
EMU_FLAGS := -std=c++17 -DSVG2_EMULATED $(EMU_WARNINGS) -ffp-contract=off -MMD -MP -I. -isystem $(CUDA)/include
# a deliberate fault is chosen when a program runs: SVG2_FAULT=12 build/tests/test_cuda_kmeans (tests/emu/faults.sh)
EMU_DEFS := -DSVG2_FAULT=$(or $(fault),cuemu::planted_fault)
# under sanitizers the unit alone is a minute's work for the compiler: what costs it most and finds least is left out
EMU_FLAGS_asan := $(FLAGS_asan) -O0 -fno-sanitize=null,pointer-overflow,object-size,vptr,return,nonnull-attribute,returns-nonnull-attribute
$B/emu:
	@mkdir -p $@
$B/emu/svg2_cuda$(fault).o: svg2_cuda.cu | $B/emu
	$(CXX) $(EMU_FLAGS) $(EMU_DEFS) $(or $(EMU_FLAGS_$(config)),$(FLAGS_$(config))) -x c++ -include tests/emu/cuda_emu.h -include tests/emu/svg2_ops.h -c $< -o $@
# attention with other switches, see VARIANT_ below: make build/tests/tma_attention
# (without optimisation a unit takes a quarter of the compiler's time, and what is run with it a third more)
VARIANT_FLAGS_release := -O0
VARIANTS := plain turns_only keys_176 tma multicast
$(VARIANTS:%=$B/emu/svg2_cuda_%.o): $B/emu/svg2_cuda_%.o: svg2_cuda.cu | $B/emu
	$(CXX) $(EMU_FLAGS) $(EMU_DEFS) $(VARIANT_$*) $(or $(EMU_FLAGS_$(config)),$(FLAGS_$(config))) $(VARIANT_FLAGS_$(config)) -x c++ -include tests/emu/cuda_emu.h -include tests/emu/svg2_ops.h -c $< -o $@
$B/emu/cuda_emu.o: tests/emu/cuda_emu.cc | $B/emu
	$(CXX) $(EMU_FLAGS) $(filter-out -fsanitize=thread,$(FLAGS_$(config))) -O2 -c $< -o $@
$B/emu/test_emu.o: tests/emu/test_emu.cc | $B/emu
	$(CXX) $(EMU_FLAGS) $(FLAGS_$(config)) -include tests/emu/cuda_emu.h -c $< -o $@
$B/emu/test_emu: $B/emu/test_emu.o $B/emu/cuda_emu.o
	$(CXX) $(FLAGS_$(config)) $^ $(LDFLAGS) -o $@
$B/emu/device.o: tests/device.cc | $B/emu
	$(CXX) $(EMU_FLAGS) $(filter-out -fsanitize=thread,$(FLAGS_$(config))) -c $< -o $@
$B/tests/test_cuda_%: $B/tests/test_cuda_%.o $B/tests/impl.o $B/emu/svg2_cuda.o $B/emu/cuda_emu.o $B/emu/device.o
	$(CXX) $(FLAGS_$(config)) $^ $(LDFLAGS) -lcmocka -lpthread -lm -o $@
$(VARIANTS:%=$B/tests/%_attention): $B/tests/%_attention: $B/tests/test_cuda_attention.o $B/tests/impl.o $B/emu/svg2_cuda_%.o $B/emu/cuda_emu.o $B/emu/device.o
	$(CXX) $(FLAGS_$(config)) $^ $(LDFLAGS) -lcmocka -lpthread -lm -o $@
$(VARIANTS:%=$B/tests/%_skip): $B/tests/%_skip: $B/tests/test_cuda_skip.o $B/tests/impl.o $B/emu/svg2_cuda_%.o $B/emu/cuda_emu.o $B/emu/device.o
	$(CXX) $(FLAGS_$(config)) $^ $(LDFLAGS) -lcmocka -lpthread -lm -o $@
# the device operations alone
build/ops/ops.inc: svg2_cuda.cu
	@mkdir -p build/ops && sed -n '/==== >>ptx/,/==== >>common/p' $< | sed '$$d' >$@
$B/tests/test_cuda_ops: tests/gpu/ops.cu tests/gpu/tensor_map.h build/ops/ops.inc $B/emu/cuda_emu.o | $B/tests
	$(CXX) $(EMU_FLAGS) -Ibuild/ops $(FLAGS_$(config)) -x c++ -include tests/emu/cuda_emu.h -include tests/emu/svg2_ops.h $< \
		-x none $B/emu/cuda_emu.o -lpthread -lm -o $@
# the benchmark, to try the program: build/emu/bench --shape 1,10,16,2,64,4,11
$B/emu/bench: bench/bench_cuda.cu bench/synth.h tests/gpu/tensor_map.h build/ops/ops.inc $B/tests/impl.o $B/emu/svg2_cuda.o $B/emu/cuda_emu.o | $B/emu
	$(CXX) $(EMU_FLAGS) -Ibuild/ops -Wno-unused-function $(FLAGS_$(config)) -x c++ -include tests/emu/cuda_emu.h \
		-include tests/emu/svg2_ops.h $< -x none $(filter %.o,$^) -ldl -lpthread -lm -o $@
# the tools with the CUDA backend, on the emulation: tests/test_tool_cuda.sh compares them with those on the CPU
TOOL_OF_svg2 := examples/svg2.c
TOOL_OF_wan := examples/wan/wan.c
$B/emu/tool_svg2.o $B/emu/tool_wan.o: $B/emu/tool_%.o: build/.deps | $B/emu
	$(CC) $(FLAGS) $(OPENMP) -DSVG2_TOOL_CUDA -I. -c $(TOOL_OF_$*) $$(CC="$(CC)" tests/deps.sh wan-flags | grep -o -e '-D[A-Z0-9_]*') -o $@
$B/emu/tool_svg2.o: examples/svg2.c
$B/emu/tool_wan.o: examples/wan/wan.c
$B/emu/tool_device.o: examples/device.cu examples/device.h | $B/emu
	$(CXX) $(EMU_FLAGS) $(FLAGS_$(config)) -x c++ -include tests/emu/cuda_emu.h -include tests/emu/svg2_ops.h -c $< -o $@
$B/tests/svg2_cuda $B/tests/wan_cuda: $B/tests/%_cuda: $B/emu/tool_%.o $B/emu/tool_device.o $B/emu/svg2_cuda.o $B/emu/cuda_emu.o | $B/tests
	$(CC) $(FLAGS_$(config)) $(OPENMP) $^ $$(CC="$(CC)" tests/deps.sh wan-flags | grep -o -e '-l[a-z]*') $(LDFLAGS) -lstdc++ -lpthread -lm -o $@

# The same tests on a GPU, and the benchmark: make gpu arch=sm_90. bench/gpu.sh does it and runs them. small_test_*: sizes for
# compute-sanitizer. For 9.0 it has to be code for sm_90a; nvcc -arch=sm_90a would compile all of it once more, for compute_90.
NVCC ?= $(or $(wildcard $(CUDA)/bin/nvcc),nvcc)
arch ?= native
DEVICE_CC = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/ *\([0-9]*\)\.\([0-9]*\).*/\1\2/p')
GPU_ARCH = $(eval GPU_ARCH := $(if $(filter 90 90a sm_90 sm_90a,$(if $(filter native,$(arch)),$(DEVICE_CC),$(arch))), \
	-gencode arch=compute_90a$(comma)code=sm_90a,-arch=$(arch)))$(GPU_ARCH)
comma := ,
G := build/gpu
GPU_TESTS := $(patsubst tests/%.c,%,$(wildcard tests/test_cuda_*.c))
GPU_SPLIT = $(shell $(NVCC) --help 2>/dev/null | grep -q -e --split-compile && echo --split-compile=0)
GPU_NVCC = $(NVCC) -std=c++17 -O3 -lineinfo $(GPU_ARCH) -I. -Ibuild/ops -Xcompiler -Wall,-fPIC
# tests/gpu/lite in place of cmocka: every test can have a process of its own
GPU_C = $(CC) -std=c99 -ffp-contract=off -O2 -fPIC -Wall -Itests/gpu/lite -pthread
COMMIT ?= $(or $(shell git rev-parse --short HEAD 2>/dev/null),unknown)
$G:
	@mkdir -p $@
$G/%.o: tests/%.c svg2.h tests/test.h tests/device.h tests/wgmma.h tests/gpu/lite/cmocka.h | $G
	$(GPU_C) -c $< -o $@
$G/small_%.o: tests/%.c svg2.h tests/test.h tests/device.h tests/wgmma.h tests/gpu/lite/cmocka.h | $G
	$(GPU_C) -DTEST_SMALL -c $< -o $@
$G/svg2_cuda.o: svg2_cuda.cu svg2.h | $G
	$(GPU_NVCC) $(GPU_SPLIT) -c $< -o $@
$G/device.o: tests/device.cc tests/device.h | $G
	$(GPU_NVCC) -x cu -c $< -o $@
$(GPU_TESTS:%=$G/%) $(GPU_TESTS:%=$G/small_%): $G/%: $G/%.o $G/impl.o $G/svg2_cuda.o $G/device.o
	$(NVCC) $(GPU_ARCH) $^ -lpthread -lm -o $@
$G/test_cuda_ops: tests/gpu/ops.cu tests/gpu/tensor_map.h build/ops/ops.inc | $G
	$(GPU_NVCC) $< -o $@
$G/probe: tests/gpu/probe.cu | $G
	$(NVCC) $< -o $@
$G/bench: bench/bench_cuda.cu bench/synth.h tests/gpu/tensor_map.h build/ops/ops.inc $G/svg2_cuda.o $G/impl.o
	$(GPU_NVCC) -Xcompiler -Wno-unused-function '-DSVG2_BENCH_COMMIT="$(COMMIT)"' $< \
		$G/svg2_cuda.o $G/impl.o -ldl -lm -o $@
$G/shim_cuda.o: bench/compare/shim_cuda.c svg2.h | $G
	$(GPU_C) -c $< -o $@
$G/libsvg2.so: $G/shim_cuda.o $G/svg2_cuda.o $G/impl.o
	$(NVCC) $(GPU_ARCH) -shared -Xlinker -Bsymbolic $^ -lm -o $@
# the tools with the CUDA backend: make cuda arch=sm_90
$G/tool_svg2.o $G/tool_wan.o: $G/tool_%.o: build/.deps | $G
	$(CC) $(FLAGS) $(OPENMP) -DSVG2_TOOL_CUDA -I. -c $(TOOL_OF_$*) $$(CC="$(CC)" tests/deps.sh wan-flags | grep -o -e '-D[A-Z0-9_]*') -o $@
$G/tool_svg2.o: examples/svg2.c
$G/tool_wan.o: examples/wan/wan.c
$G/tool_device.o: examples/device.cu examples/device.h | $G
	$(GPU_NVCC) -c $< -o $@
$G/svg2 $G/wan: $G/%: $G/tool_%.o $G/tool_device.o $G/svg2_cuda.o
	$(NVCC) $(GPU_ARCH) -Xcompiler -fopenmp $^ $$(CC="$(CC)" tests/deps.sh wan-flags | grep -o -e '-l[a-z]*') -lpthread -lm -o $@
# svg2_cuda.cu with other switches, for the benchmark to compare in one process: make variants variants="plain keys_176"
variants ?= plain turns_only keys_176
VARIANT_plain := -DSVG2_CUDA_OVERLAP=0 -DSVG2_CUDA_PINGPONG=0
VARIANT_turns_only := -DSVG2_CUDA_OVERLAP=0
VARIANT_keys_176 := -DSVG2_CUDA_KEYS_128=176
VARIANT_tma := -DSVG2_CUDA_TMA=1
VARIANT_multicast := -DSVG2_CUDA_TMA=1 -DSVG2_CUDA_MULTICAST=1
$G/variant_%.o: svg2_cuda.cu svg2.h | $G
	$(if $(VARIANT_$*),,$(error there is no variant $*))$(GPU_NVCC) $(GPU_SPLIT) $(VARIANT_$*) -c $< -o $@
$G/variant_%.so: $G/variant_%.o $G/impl.o
	$(NVCC) $(GPU_ARCH) -shared -Xlinker -Bsymbolic $^ -lm -o $@
$(VARIANTS:%=$G/%_attention): $G/%_attention: $G/test_cuda_attention.o $G/impl.o $G/variant_%.o $G/device.o
	$(NVCC) $(GPU_ARCH) $^ -lpthread -lm -o $@
variants: $(variants:%=$G/variant_%.so) $(variants:%=$G/%_attention)
cuda: $G/svg2 $G/wan
gpu: $G/test_cuda_ops $(GPU_TESTS:%=$G/%) $(GPU_TESTS:%=$G/small_%) $G/bench $G/libsvg2.so
# a test with a planted fault: make fault=12 build/tests/fault12_kmeans
$B/tests/fault$(fault)_%: $B/tests/test_cuda_%.o $B/tests/impl.o $B/emu/svg2_cuda$(fault).o $B/emu/cuda_emu.o $B/emu/device.o
	$(CXX) $(FLAGS_$(config)) $^ $(LDFLAGS) -lcmocka -lpthread -lm -o $@

$B/tests:
	@mkdir -p $@
build/.deps: tests/deps.sh
	@mkdir -p build && CC="$(CC)" tests/deps.sh install && touch $@

programs: $(PROGRAMS)
test: build/.deps
	@CC="$(CC)" MAKE="$(MAKE)" tests/run.sh
fuzz: build/.deps
	@CC="$(CC)" MAKE="$(MAKE)" tests/fuzz.sh $(or $(seconds),300)
demo: $B/wan $B/svg2
	@examples/wan/demo.sh $B/wan $B/svg2
pareto: $B/wan $B/svg2
	@examples/wan/pareto.sh $B/wan $(args)
bench: $B/bench
	$B/bench $(args)
compare:
	bench/compare/run.sh $(args)
clean:
	rm -rf build out
help:
	@echo "make            build/svg2, the command-line tool; build/wan, a video transformer; build/minimal"
	@echo "make demo       generates a clip with dense and with sparse attention and compares them; in out/"
	@echo "make pareto     quality of generated clips against density: CSV and plot       args='--quick', --methods, --times"
	@echo "make test       all tests: the programs of tests/, sanitizers, header hygiene, a short fuzz run"
	@echo "make bench      speed beside the machine's own FMA peak        args='--quick'"
	@echo "make compare    speed beside PyTorch and scikit-learn, if there"
	@echo "make cuda       build/gpu/svg2, build/gpu/wan: the tools with --backend cuda, by nvcc   arch=sm_90, else this GPU"
	@echo "make gpu        tests and benchmark of svg2_cuda.cu, by nvcc   arch=sm_90; bench/gpu.sh builds and runs them"
	@echo "make fuzz       libFuzzer (clang) over descriptors and files   seconds=300"
	@echo "make clean      removes build/ and out/"
	@echo "config=release|debug|asan|tsan|scalar   CC=clang   CFLAGS=... LDFLAGS=..."

.PHONY: all programs cuda gpu variants test fuzz demo pareto bench compare clean help
.SECONDARY:
-include $(wildcard $B/*.d $B/tests/*.d $B/emu/*.d $G/*.d)
