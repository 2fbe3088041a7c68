/* Measures libfdt for the benchmark of the handover: libfdt_bench write|read FILES prints the best run's
 * nanoseconds a file. The tree is the files' tree of one session. */
#include <inttypes.h>
#include <libfdt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void check(int error)
{
	if (error < 0) {
		fprintf(stderr, "%s\n", fdt_strerror(error));
		exit(1);
	}
}

static void write_tree(void *blob, int size, long files)
{
	char name[20];

	check(fdt_create(blob, size));
	check(fdt_finish_reservemap(blob));
	check(fdt_begin_node(blob, ""));
	check(fdt_property_string(blob, "compatible", "file-descriptors-v1"));
	check(fdt_begin_node(blob, "session-0"));
	check(fdt_property_u64(blob, "owner", 0x3e8000003e8));
	for (long i = 0; i < files; i++) {
		snprintf(name, sizeof(name), "0x%lx", i);
		check(fdt_begin_node(blob, name));
		check(fdt_property_string(blob, "compatible", "memfd-v1"));
		check(fdt_property_u64(blob, "data", i));
		check(fdt_end_node(blob));
	}
	check(fdt_end_node(blob));
	check(fdt_end_node(blob));
	check(fdt_finish(blob));
}

static uint64_t read_tree(const void *blob, int size)
{
	uint64_t sum = 0;
	int session, file, len;

	check(fdt_check_full(blob, size));
	fdt_for_each_subnode(session, blob, 0) {
		fdt_for_each_subnode(file, blob, session) {
			const char *name = fdt_get_name(blob, file, &len);
			const char *compatible = fdt_getprop(blob, file, "compatible", &len);
			const fdt64_t *data;

			sum += strtoull(name, NULL, 16) ^ strlen(compatible);
			data = fdt_getprop(blob, file, "data", &len);
			sum ^= fdt64_ld(data);
		}
	}
	return sum;
}

int main(int argc, char **argv)
{
	long files = argc > 2 ? atol(argv[2]) : 1000;
	int writes = argc > 1 && !strcmp(argv[1], "write");
	int size = 4096 + 64 * files, runs = 0;
	void *blob = malloc(size);
	volatile uint64_t sink = 0;
	double begin = now(), best = 1e18;

	if (!blob)
		return 1;
	if (!writes)
		write_tree(blob, size, files);
	while (runs++ < 5 || now() - begin < 1e9) {
		void *fresh = writes ? malloc(size) : blob;
		double start = now(), took;

		if (!fresh)
			return 1;
		if (writes)
			write_tree(fresh, size, files);
		else
			sink += read_tree(fresh, size);
		took = now() - start;
		best = took < best ? took : best;
		if (writes)
			free(fresh);
	}
	printf("%.1f\n", best / files);
	return 0;
}
