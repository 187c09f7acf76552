// SPDX-License-Identifier: Apache-2.0
/*
 * ncurses keeps the state of the terminal for the process. It also handles SIGWINCH: the signal
 * ends a poll(), and the next getch() gives KEY_RESIZE.
 */
#include "tools/screen.h"

#include <curses.h>
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"

#define CTRL_L 0x0c

enum {
	PAIR_ALARM = 1,
	PAIR_HEAT,
};

int screen_open(struct ferry_failure *f)
{
	const char *term = getenv("TERM");

	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
		return ferry_fail(f, FERRY_REFUSE, -ENOTTY,
				  "standard input and output are no terminal; add --plain");
	setlocale(LC_CTYPE, "");
	if (!newterm(NULL, stdout, stdin))
		return ferry_fail(f, FERRY_REFUSE, -EINVAL,
				  "the terminal '%.40s' is not known; set TERM, or add --plain",
				  term ? term : "");
	cbreak();
	noecho();
	nonl();
	nodelay(stdscr, TRUE);
	keypad(stdscr, TRUE);
	curs_set(0);
	if (has_colors()) {
		start_color();
		use_default_colors();
		init_pair(PAIR_ALARM, COLOR_RED, -1);
		init_pair(PAIR_HEAT, COLOR_GREEN, -1);
	}
	return 0;
}

void screen_close(void)
{
	endwin();
}

static attr_t attributes(enum live_style style)
{
	switch (style) {
	case LIVE_STYLE_PLAIN:
		return A_NORMAL;
	case LIVE_STYLE_TITLE:
		return A_REVERSE | A_BOLD;
	case LIVE_STYLE_HEAD:
		return A_UNDERLINE;
	case LIVE_STYLE_ALARM:
		return A_BOLD | (attr_t)COLOR_PAIR(PAIR_ALARM);
	case LIVE_STYLE_HEAT:
		return (attr_t)COLOR_PAIR(PAIR_HEAT);
	case LIVE_STYLE_DIM:
		return A_DIM;
	}
	return A_NORMAL;
}

void screen_draw(const struct live *l)
{
	struct live_line lines[LIVE_LINES_MAX];
	bool utf8 = !strcmp(nl_langinfo(CODESET), "UTF-8");
	int rows, columns;
	unsigned int n;

	getmaxyx(stdscr, rows, columns);
	n = live_render(l, (unsigned int)FERRY_MAX(columns, 0), (unsigned int)FERRY_MAX(rows, 0),
			utf8, lines);
	erase();
	for (unsigned int i = 0; i < n; i++) {
		attrset((int)attributes(lines[i].style));
		/* The title's bar goes from side to side. */
		if (lines[i].style == LIVE_STYLE_TITLE)
			mvhline((int)i, 0, ' ' | A_REVERSE, columns);
		mvaddstr((int)i, 0, lines[i].text);
	}
	attrset(A_NORMAL);
	refresh();
}

enum screen_key screen_read(void)
{
	for (;;) {
		int key = getch();

		switch (key) {
		case ERR:
			return SCREEN_NOTHING;
		case KEY_RESIZE:
		case CTRL_L:
			clearok(stdscr, TRUE);
			return SCREEN_RESIZED;
		case 'q':
		case 'Q':
			return SCREEN_QUIT;
		default:
			break;
		}
	}
}
