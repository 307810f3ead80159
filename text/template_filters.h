/* The filters by the files they are in; template_filters.c has the table. Private to the chat template. */
#ifndef TEXT_TEMPLATE_FILTERS_H
#define TEXT_TEMPLATE_FILTERS_H

#include "text/template_ast.h"

#define FILTER(name) struct template_val name(struct template_run *r, struct template_val v, const struct template_args *a)

/* template_filters.c: text and numbers */
static inline bool template_filter_flag(struct template_val v)
{
    return template_given(v) && template_truth(v);
}

/* template_filters_seq.c: what gives sequences or takes them */
template_fn template_filter_batch, template_filter_dictsort, template_filter_first, template_filter_groupby, template_filter_items,
    template_filter_join, template_filter_last, template_filter_list, template_filter_map, template_filter_max, template_filter_min,
    template_filter_reject, template_filter_rejectattr, template_filter_reverse, template_filter_select, template_filter_selectattr,
    template_filter_slice, template_filter_sort, template_filter_sum, template_filter_unique;

/* Sorts the items of d by key, for JSON. */
uint32_t *template_filter_key_order(struct template_run *r, const struct template_dict *d);

#endif
