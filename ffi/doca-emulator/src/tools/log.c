/*
 * The one function of the interface that C must define: it takes any number of arguments, which stable Rust
 * cannot. It makes text of them and hands it to log.rs.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <doca_log.h>

doca_error_t doca_emulator_log_line(uint32_t level, int source, int line, const char *func, const char *text);
/* Whether any backend wants such a line. */
int doca_emulator_log_wants(uint32_t level);

DOCA_STABLE doca_error_t doca_log(uint32_t level, int source, const char *fname, int line, const char *func,
				  const char *format, ...)
{
	char short_text[512];
	char *text = short_text;
	va_list args;
	doca_error_t result;
	int length;

	(void)fname;
	if (format == NULL)
		return DOCA_ERROR_INVALID_VALUE;
	if (!doca_emulator_log_wants(level))
		return DOCA_SUCCESS;

	va_start(args, format);
	length = vsnprintf(short_text, sizeof(short_text), format, args);
	va_end(args);
	if (length < 0)
		return DOCA_ERROR_INVALID_VALUE;
	if ((size_t)length >= sizeof(short_text)) {
		text = malloc((size_t)length + 1);
		if (text == NULL)
			return DOCA_ERROR_NO_MEMORY;
		va_start(args, format);
		(void)vsnprintf(text, (size_t)length + 1, format, args);
		va_end(args);
	}
	result = doca_emulator_log_line(level, source, line, func, text);
	if (text != short_text)
		free(text);
	return result;
}
